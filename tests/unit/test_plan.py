"""Which rows make which step, and the micro-batches of a step."""

from torch.nn import Embedding, Linear, Sequential

from shared.recipe import Learner
from shared.spec import Spec
from worker.engine.data import Plan, least_padded, portions
from worker.engine.run import cost_of_a_call


def test_step_n_is_the_same_batch_whoever_asks():
    lengths = [n * 37 % 50 + 1 for n in range(103)]
    spec = Spec(epochs=3, batch_size=8)
    plan, later = (Plan(list(range(103)), lengths, spec, seed=5) for _ in range(2))
    assert plan.total == 39
    whole = [plan.batch(step) for step in range(1, plan.total + 1)]
    assert later.batch(30) == whole[29]
    for epoch in range(3):
        seen = [place for batch in whole[13 * epoch : 13 * epoch + 13] for place in batch]
        assert sorted(seen) == list(range(103))
    assert all([lengths[n] for n in batch] == sorted(lengths[n] for n in batch) for batch in whole)


def test_micro_batches_keep_to_their_budget():
    lengths = [3, 4, 5, 9, 30]
    assert portions([0, 1, 2, 3, 4], lengths, budget=15) == [[0, 1, 2], [3], [4]]


def test_micro_batches_are_padded_as_little_as_pays():
    lengths = [3, 3, 4, 20, 22, 30]
    every = list(range(6))
    assert least_padded(every, lengths, budget=1000, fixed=0) == [[0, 1], [2], [3], [4], [5]]
    assert least_padded(every, lengths, budget=1000, fixed=20) == [[0, 1, 2], [3, 4, 5]]
    assert least_padded(every, lengths, budget=1000, fixed=1000) == [every]
    assert least_padded(every, lengths, budget=60, fixed=1000) == [[0, 1, 2], [3, 4], [5]]
    assert least_padded([5], lengths, budget=10, fixed=0) == [[5]]


def test_a_call_costs_the_more_tokens_the_smaller_the_matrices():
    costs = [
        cost_of_a_call(Learner(Spec(), {}, model=Sequential(Embedding(5000, width), Linear(width, width))))
        for width in (64, 384, 4096)
    ]
    assert costs == [2294, 63, 0]


def test_an_epoch_brings_other_batches_than_the_one_before():
    plan = Plan(list(range(64)), list(range(64)), Spec(epochs=2, batch_size=8), seed=5)
    first, second = ({frozenset(plan.batch(step)) for step in steps} for steps in (range(1, 9), range(9, 17)))
    assert not first & second
