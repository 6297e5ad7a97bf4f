"""What processes decide together; of several see test_ddp.py."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from covidseg.training.agreement import LaterAgreement, agreed


def test_one_process_agrees_with_itself():
    assert agreed(15, torch.device("cpu")) == 15


def _talk(rank, words, place, told):
    """What a process hears, call by call: `ask` each word, and `settle` the last one."""
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=len(words))
    later, cpu = LaterAgreement(), torch.device("cpu")
    heard = [later.ask(word, cpu) for word in words[rank][:-1]]
    heard.append(later.settle(words[rank][-1], cpu))
    told.put((rank, heard))
    dist.destroy_process_group()


@pytest.mark.parametrize(("words", "said"), [
    ([[0, 15, 0, 0], [0, 0, 0, 2]], [0, 0, 15, 2]),
    ([[0, 0, 15, 0], [0, 0, 0, 2]], [0, 0, 0, 15]),  # what was asked last is not lost when it is settled
])  # fmt: skip
def test_several_hear_each_other_one_call_later(tmp_path, words, said):
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    talking = [context.Process(target=_talk, args=(rank, words, tmp_path / "meet", told)) for rank in (0, 1)]
    for one in talking:
        one.start()
    heard = dict(told.get(timeout=120) for _ in talking)
    for one in talking:
        one.join(30)
    assert heard == {0: said, 1: said}


def test_one_process_hears_itself_at_once():
    later = LaterAgreement()
    assert [later.ask(15, torch.device("cpu")), later.settle(2, torch.device("cpu"))] == [15, 2]
