"""Many runs, each in a fresh process of its own: what is missing, where it runs next, what became of it.

    folds      one run for each fold, where the data have no test set
    divisions  what `folds` asks, in a process of its own
    rows       one run of the sweep: its command-line overrides, its folder, what the folder says about it
    ledger     the sweep's file below `runs/.sweeps/`, which `status` reads
    schedule   which run starts next on which devices; the same rule simulated, for the expected time
    pool       runs as child processes on this machine's devices
    slurm      runs as jobs of a SLURM cluster
    driver     the loop that keeps the devices busy until nothing is left
    launch     all of it, from the rows to the table
    estimate   time and disk, before anything starts
    account    what the devices did meanwhile, afterwards
    view       the table of rows, live or as plain lines

Nothing here imports torch: the driver only starts programs and reads files.
"""
