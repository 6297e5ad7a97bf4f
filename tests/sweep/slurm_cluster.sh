#!/bin/bash
# A real SLURM of one node with six fake GPUs, as root, in a folder of its own: nothing below /etc or /var is touched.
#   slurm_cluster.sh start FOLDER   prints nothing; the cluster is FOLDER/slurm.conf (export SLURM_CONF)
#   slurm_cluster.sh stop FOLDER
set -eu
action=$1 folder=$2 host=$(hostname -s)

pids() { cat "$folder"/*.pid 2>/dev/null || true; }

case $action in
start)
    mkdir -p "$folder"/{state,spool,gpu}
    for i in 0 1 2 3 4 5; do mknod "$folder/gpu/gpu$i" c 1 3; done
    dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge.key"
    chmod 755 "$folder"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$3
SlurmdPort=$4
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=100000,sched_interval=5,bf_interval=2
KillWait=5
MinJobAge=300
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=12 RealMemory=4000 Gres=gpu:6 State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
    echo "Name=gpu File=$folder/gpu/gpu[0-5]" >"$folder/gres.conf"
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld
    slurmd
    for _ in $(seq 120); do
        sinfo -h -o %t 2>/dev/null | grep -q idle && exit 0
        sleep 0.25
    done
    echo "the cluster did not become idle" >&2
    tail -n 5 "$folder"/slurm*.log >&2
    exit 1
    ;;
stop)
    export SLURM_CONF="$folder/slurm.conf"
    scancel --full --user root || true
    for _ in $(seq 80); do
        [ -z "$(squeue -h || true)" ] && break
        sleep 0.25
    done
    for pid in $(pids); do kill "$pid" || true; done
    ;;
esac
