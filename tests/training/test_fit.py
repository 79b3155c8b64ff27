"""`fit`: it learns, keeps what it says, and a run is a function of its key, however often it was cut."""

import errno
import json
import math
import re

import pytest
import torch
from helpers import grouped, lines_of, striking, untimed

import fmeta
from fmeta import Examples, Task
from fmeta.core import fold, key, uniform
from fmeta.core.tree import tree_leaves
from fmeta.training import _batches, _checkpoint, _run_files, load_checkpoint
from fmeta.training._checkpoint import checkpoints
from fmeta.training._run_files import claimed

LEARNER = fmeta.maml(fmeta.models.mlp([1, 8, 1], torch.tanh), fmeta.mse, optimizer=fmeta.sgd(0.02), steps=1)
OUTER = fmeta.chain(fmeta.clip_by_global_norm(5.0), fmeta.adam(fmeta.cosine_decay(0.02, 40)))
SINUSOID = fmeta.tasks.sinusoid(shots=4, query=4)


def train(run_dir=None, iterations=40, **changes):
    given = {"key": key(3), "iterations": iterations, "meta_batch": 3, "log_every": 5, "save_every": 10}
    given |= {"learner": LEARNER, "optimizer": OUTER, "sample": SINUSOID, "run_dir": run_dir}
    given |= changes
    return fmeta.fit(given.pop("learner"), given.pop("optimizer"), given.pop("sample"), **grouped(**given))


def same_bits(a, b):
    return all(
        u.dtype == v.dtype and bytes(u.contiguous().untyped_storage()) == bytes(v.contiguous().untyped_storage())
        for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True)
    )


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def steps_kept(run_dir):
    assert not list((run_dir / "checkpoints").glob("*.tmp"))
    return [step for step, _ in checkpoints(run_dir / "checkpoints")]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run of 40 steps: its folder and final state."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, train(folder)


def test_the_loss_on_fixed_tasks_goes_down():
    tasks = SINUSOID(fold(key(5), 1), 50)
    before = train(iterations=1, optimizer=fmeta.sgd(0.0))
    after = train(iterations=60, optimizer=fmeta.adam(0.02))
    losses = [fmeta.evaluate(LEARNER, state.meta, tasks).mean("loss")[0] for state in (before, after)]
    assert losses[1] < 0.85 * losses[0]


def test_the_state_does_not_depend_on_what_is_kept_or_logged(reference):
    assert same_bits(train(log_every=7, save_every=13), reference[1])


def test_the_run_depends_on_the_key():
    assert not same_bits(train(iterations=2).meta, train(iterations=2, key=key(4)).meta)


def test_metrics_have_a_line_at_every_log_every_save_and_the_end(tmp_path):
    train(tmp_path, iterations=25, log_every=10, save_every=15)
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 15, 20, 25]


def test_a_line_holds_the_means_since_the_line_before(tmp_path):
    def error(prediction, y):
        return (prediction - y).abs().mean(-1)

    learner = fmeta.maml(
        fmeta.models.mlp([1, 4, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1, metrics={"absolute": error}
    )
    each, seen = [], []
    train(iterations=12, learner=learner, log_every=1, loggers=[lambda step, values: each.append(values)])
    train(tmp_path, 12, learner=learner, log_every=4, loggers=[lambda step, values: seen.append((step, values))])
    lines = lines_of(tmp_path)  # the checkpoint at 10 closes a window too
    assert [line["step"] for line in lines] == [4, 8, 10, 12]
    assert [{"step": step, **untimed(values)} for step, values in seen] == lines
    for line, (begin, end) in zip(lines, [(0, 4), (4, 8), (8, 10), (10, 12)], strict=True):
        for name in ("loss", "absolute"):
            mean = math.fsum(values[name] for values in each[begin:end]) / (end - begin)
            assert line[name] == pytest.approx(mean, rel=1e-5)


def test_the_last_and_the_best_checkpoint_are_kept(tmp_path):
    values = iter([3.0, 1.0, 2.0, 5.0])
    train(tmp_path, validate=lambda meta: next(values))
    found = checkpoints(tmp_path / "checkpoints")
    assert [(step, facts["validation"]) for step, facts in found] == [(20, {"loss": 1.0}), (40, {"loss": 5.0})]


def test_a_validation_that_is_not_a_number_is_never_the_best(tmp_path):
    values = iter([math.nan, 1.0, -math.inf, math.nan])
    with pytest.warns(UserWarning, match="this validation gives"):
        train(tmp_path, validate=lambda meta: next(values))
    assert steps_kept(tmp_path) == [20, 40]


def test_without_validation_only_the_last_checkpoint_is_kept(reference):
    folder, state = reference
    assert steps_kept(folder) == [40]
    assert same_bits(load_checkpoint(folder / "checkpoints" / "00000040", state), state)


def test_validation_sees_the_meta_parameters_it_is_recorded_with(tmp_path):
    seen = []

    def validate(meta):
        seen.append({n: p.clone() for n, p in meta.items()})
        return 1.0 - len(seen)

    state = train(tmp_path, iterations=20, validate=validate)
    assert len(seen) == 2
    assert same_bits(seen[1], state.meta)
    assert not same_bits(seen[0], seen[1])


@pytest.mark.parametrize("block", [100, 8], ids=["one block of batches", "a resume inside a block"])
def test_resumed_at_20_a_run_ends_with_the_same_bits_and_lines(tmp_path, monkeypatch, block):
    monkeypatch.setattr(_batches, "_BLOCK_STEPS", block)
    whole = train(tmp_path / "whole")
    half = train(tmp_path / "cut", iterations=20)
    resumed = train(tmp_path / "cut", resume=True)
    assert same_bits(resumed, whole)  # parameters, Adam's state, counts
    assert not same_bits(half.meta, whole.meta)
    assert int(resumed.step) == 40
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    files = [tmp_path / run / "checkpoints" / "00000040" / "state.safetensors" for run in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_resuming_a_finished_run_changes_nothing(tmp_path, reference):
    train(tmp_path)
    before = contents(tmp_path)
    assert same_bits(train(tmp_path, resume=True), reference[1])
    assert contents(tmp_path) == before


def test_resume_in_an_empty_folder_starts_from_the_beginning(tmp_path, reference):
    """A run killed before its first checkpoint has a folder and nothing in it."""
    assert same_bits(train(tmp_path, resume=True), reference[1])


@pytest.mark.parametrize(
    "tail",
    [
        "binary",
        '{"step": 25, "loss": 9.0, "seconds": 1.0}\n',
        '{"step": 25, "loss": 9.0, "seconds": 1.0}\n{"step": 3',
        "\0",
    ],
)
def test_lines_newer_than_the_checkpoint_and_half_lines_are_cut_off(tmp_path, reference, tail):
    """What a run killed between two checkpoints leaves."""
    train(tmp_path, iterations=20)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 25, "loss": \xff\xfe' if tail == "binary" else tail.encode())
    assert same_bits(train(tmp_path, resume=True), reference[1])
    assert lines_of(tmp_path) == lines_of(reference[0])


def test_a_run_that_died_before_its_first_checkpoint_starts_again(tmp_path, reference):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 9.0, "seconds": 1.0}\n')
    (tmp_path / "checkpoints" / "00000010.tmp").mkdir(parents=True)
    assert same_bits(train(tmp_path, resume=True), reference[1])
    assert lines_of(tmp_path) == lines_of(reference[0])
    assert steps_kept(tmp_path) == [40]


@pytest.mark.parametrize("left", ["whole run", "metrics only", "checkpoints only"])
def test_a_folder_with_a_run_is_refused_and_left_as_it_was(tmp_path, left):
    if left == "metrics only":
        (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0, "seconds": 1.0}\n')
    else:
        train(tmp_path, iterations=10)
    if left == "checkpoints only":
        (tmp_path / "metrics.jsonl").unlink()
    before = contents(tmp_path)
    with pytest.raises(fmeta.InputError, match=r"fit\(run_dir=.*already holds a run.*resume=True"):
        train(tmp_path, iterations=20)
    assert contents(tmp_path) == before


def test_a_damaged_last_checkpoint_is_named_and_its_cure_works(tmp_path, reference):
    values = iter([1.0, 2.0])
    train(tmp_path, iterations=20, validate=lambda meta: next(values))
    last = tmp_path / "checkpoints" / "00000020"
    (last / "state.safetensors").write_bytes(b"")
    with pytest.raises(fmeta.InputError) as caught:
        train(tmp_path, resume=True)
    assert f"remove {last} to fall back" in str(caught.value)
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert same_bits(train(tmp_path, resume=True), reference[1])


def test_another_learner_cannot_go_on_with_the_run(tmp_path):
    train(tmp_path, iterations=10)
    before = contents(tmp_path)
    wider = fmeta.maml(fmeta.models.mlp([1, 9, 1], torch.tanh), fmeta.mse, optimizer=fmeta.sgd(0.02), steps=1)
    with pytest.raises(fmeta.InputError, match=r"load_checkpoint.*the first (meta|opt_state)\."):
        train(tmp_path, resume=True, learner=wider)
    assert contents(tmp_path) == before


def interrupt_at(wanted):
    def progress(step, values):
        if step == wanted:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("step", [5, 15, 20])
def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_ends_with_the_same_bits(tmp_path, reference, step):
    """20 is also a step at which a checkpoint is due."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loggers=[interrupt_at(step)])
    assert steps_kept(tmp_path)[-1] == step
    assert same_bits(train(tmp_path, resume=True), reference[1])


def test_ctrl_c_at_a_log_costs_no_line_of_metrics(tmp_path, reference):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loggers=[interrupt_at(15)])
    train(tmp_path, resume=True)
    assert lines_of(tmp_path) == lines_of(reference[0])


def interrupted_while_drawing(patch, *steps):
    """Ctrl-C strikes while the batch after each of these steps is drawn."""
    real, left = _batches.Batches.draw, list(steps)

    def draw(self):
        self.drawn = getattr(self, "drawn", self.begun)
        if left and self.drawn == left[0]:
            left.pop(0)
            raise KeyboardInterrupt
        self.drawn += 1
        return real(self)

    def init(self, sample, k, meta_batch, start, part, made=_batches.Batches.__init__):
        self.begun = start
        made(self, sample, k, meta_batch, start, part)

    patch.setattr(_batches.Batches, "draw", draw)
    patch.setattr(_batches.Batches, "__init__", init)


def absolute(prediction, y):
    return (prediction - y).abs().mean(-1)


TOLD = fmeta.maml(
    fmeta.models.mlp([1, 8, 1], torch.tanh),
    fmeta.mse,
    optimizer=fmeta.sgd(0.02),
    steps=1,
    metrics={"absolute": absolute},
)


@pytest.mark.parametrize("steps", [(1,), (16,), (19,), (23, 24), (31, 36, 39)])
def test_interrupted_between_two_logs_a_run_ends_with_the_same_bits_and_lines(tmp_path, monkeypatch, steps):
    """Lines tell of every step once, whichever process took it."""
    options = {"learner": TOLD, "gradient": {0: fmeta.first_order(), 18: fmeta.unrolled()}}
    options["gradient"] = {n: fmeta.skipping(g) for n, g in options["gradient"].items()}
    whole = train(tmp_path / "whole", **options)
    interrupted_while_drawing(monkeypatch, *steps)
    run = tmp_path / "cut"
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            train(run, resume=run.exists(), **options)
        assert steps_kept(run) == [step]
    assert same_bits(train(run, resume=True, **options), whole)
    assert lines_of(run) == lines_of(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["log", "save"])
def test_interrupted_while_a_line_or_a_checkpoint_is_written_a_run_ends_the_same(
    tmp_path, monkeypatch, reference, moment
):
    """The step of that line is not done yet, so it is done again, and the line is the mean of the same steps."""
    real, struck = getattr(_run_files.RunFiles, moment), []

    def strikes(self, *args, **facts):
        if not struck and (moment == "save" or args[0]["step"] == 15):
            struck.append(moment)
            if moment == "log":
                real(self, *args, **facts)
            raise KeyboardInterrupt
        real(self, *args, **facts)

    monkeypatch.setattr(_run_files.RunFiles, moment, strikes)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert steps_kept(tmp_path)[-1] == {"log": 14, "save": 9}[moment]
    assert same_bits(train(tmp_path, resume=True), reference[1])
    assert lines_of(tmp_path) == lines_of(reference[0])


@pytest.mark.parametrize("level", [61, 62, 63, 64])
def test_interrupted_in_the_middle_of_torch_func_a_run_is_saved_at_its_step(tmp_path, reference, level):
    with pytest.raises(KeyboardInterrupt), striking(level, KeyboardInterrupt):
        train(tmp_path)
    assert 1 < steps_kept(tmp_path)[-1] < 40
    assert same_bits(train(tmp_path, resume=True), reference[1])
    assert lines_of(tmp_path) == lines_of(reference[0])


@pytest.mark.parametrize("level", range(6, 12))
def test_an_interruption_while_compiling_is_no_reason_to_run_eager(level):
    with pytest.raises(KeyboardInterrupt), striking(level, KeyboardInterrupt):
        train(scope="whole")


def test_interrupted_where_nothing_can_be_saved_a_run_says_so(tmp_path, monkeypatch):
    def interrupts(step, values):
        raise KeyboardInterrupt

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_checkpoint, "_write", full)
    with pytest.raises(fmeta.SaveError, match="No space left on device; there is no checkpoint yet"):
        train(tmp_path, loggers=[interrupts])


def test_a_checkpoint_that_was_being_replaced_comes_back_when_the_run_goes_on(tmp_path, reference):
    """A kill between two renames. Whoever only reads the folder moves nothing in it."""
    train(tmp_path, iterations=20)
    folder = tmp_path / "checkpoints"
    (folder / "00000020").rename(folder / "00000020.old")
    before = contents(tmp_path)
    assert checkpoints(folder) == []
    assert contents(tmp_path) == before
    (tmp_path / "metrics.jsonl").unlink()  # else what was lost would show in the lines
    train(tmp_path, iterations=20, resume=True)
    assert not (tmp_path / "metrics.jsonl").read_text()  # it stood at 20 again, with nothing left to do
    assert same_bits(train(tmp_path, resume=True), reference[1])
    assert steps_kept(tmp_path) == [40]
    assert not any(folder.glob("*.old"))


def test_a_process_may_name_the_folder_it_holds_in_another_way(tmp_path, monkeypatch, reference):
    """As the command line, which holds the folder of a run, may: an absolute path, or a link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with claimed("run", resume=False):
        assert same_bits(train(tmp_path / "link"), reference[1])


BLOWS_UP = fmeta.sgd(1e30)  # after the first update the loss overflows float32


def test_a_first_step_that_is_not_finite_leaves_the_beginning(tmp_path):
    with pytest.raises(fmeta.NonFiniteError, match="not finite at step 0"):
        train(tmp_path, learner=_steep(1e30), log_every=1)
    expected = train(iterations=1, optimizer=fmeta.sgd(0.0))
    kept = load_checkpoint(tmp_path / "checkpoints" / "00000000", train(iterations=1))
    assert same_bits(kept.meta, expected.meta)


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_non_finite_loss_stops_the_run_and_the_state_before_it_is_kept(tmp_path, log_every):
    with pytest.raises(
        fmeta.NonFiniteError, match=r"fit\(maml\): .*not finite at step 1;.*withheld.*lower the"
    ) as caught:
        train(tmp_path, iterations=10, optimizer=BLOWS_UP, log_every=log_every)
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert steps_kept(tmp_path) == [1]
    expected = train(iterations=1, optimizer=BLOWS_UP)
    kept = load_checkpoint(tmp_path / "checkpoints" / "00000001", expected)
    assert same_bits(kept, expected)
    assert all(bool(leaf.isfinite().all()) for leaf in tree_leaves(kept))
    metrics = tmp_path / "metrics.jsonl"
    assert all(math.isfinite(json.loads(line)["loss"]) for line in metrics.read_text().splitlines())


def test_a_non_finite_loss_without_a_run_folder_says_how_to_keep_states():
    with pytest.raises(fmeta.NonFiniteError, match=r"step 1;.*run_dir"):
        train(iterations=10, optimizer=BLOWS_UP)


def test_resumed_with_another_rate_a_run_that_blew_up_goes_on(tmp_path):
    with pytest.raises(fmeta.NonFiniteError, match="step 0"):
        train(tmp_path, learner=_steep(1e30), optimizer=fmeta.adam(0.01))
    state = train(tmp_path, iterations=4, optimizer=fmeta.adam(0.01), resume=True)
    assert (int(state.step), int(state.bad)) == (4, -1)


def _steep(rate):
    return fmeta.maml(fmeta.models.mlp([1, 8, 1], torch.tanh), fmeta.mse, optimizer=fmeta.sgd(rate), steps=2)


def test_a_non_finite_step_right_after_a_checkpoint_does_not_erase_its_validation(tmp_path):
    """The kept state is the one of the checkpoint: written again, it must not lose that it is the best."""
    with pytest.raises(fmeta.NonFiniteError):
        train(tmp_path, optimizer=BLOWS_UP, log_every=1, save_every=1, validate=lambda meta: 0.5)
    assert [(step, f["validation"]) for step, f in checkpoints(tmp_path / "checkpoints")] == [(1, {"loss": 0.5})]


def test_steps_that_were_withheld_are_told_of_only_when_they_are_taken(tmp_path):
    """A task in mid-run is infinite; the run goes on without such tasks, and looks more often."""

    def sample(k, count):
        tasks = SINUSOID(k, count)
        spoils = torch.where((uniform(fold(k, 107)) < 0.08) & (torch.arange(count) == 0), torch.inf, 0.0)
        return tasks._replace(support=tasks.support._replace(y=tasks.support.y + spoils[:, None, None]))

    options = {"iterations": 20, "sample": sample, "save_every": 20}
    with pytest.raises(fmeta.NonFiniteError):
        train(tmp_path / "cut", log_every=20, **options)
    (at,) = steps_kept(tmp_path / "cut")
    assert 4 < at < 18
    options |= {"log_every": at + 2, "gradient": fmeta.skipping()}
    resumed = train(tmp_path / "cut", resume=True, **options)
    assert same_bits(resumed, train(tmp_path / "whole", **options))
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    assert lines_of(tmp_path / "cut")[0]["skipped"] >= 1


def test_a_batch_without_any_good_task_is_not_told_to_leave_tasks_out(tmp_path):
    with pytest.raises(fmeta.NonFiniteError, match=r"of every task, where those were left out\) not finite") as caught:
        train(tmp_path, learner=_steep(1e30), gradient=fmeta.skipping())
    assert "skipping" not in str(caught.value)


def test_labels_out_of_range_are_reported_by_name_before_anything_is_trained(tmp_path):
    learner = fmeta.maml(fmeta.models.mlp([2, 3]), fmeta.cross_entropy, optimizer=fmeta.sgd(0.1), steps=1)

    def sample(k, count):
        x = uniform(k, (count, 6, 2))
        y = (torch.arange(6) % 4).expand(count, 6)  # four classes for three outputs
        return Task(Examples(x, y), Examples(x, y))

    with pytest.raises(fmeta.InputError, match=r"cross_entropy: labels run from 0 to 3; expected 0 to 2"):
        train(tmp_path, learner=learner, sample=sample)
    assert steps_kept(tmp_path) == []


def refused(key, count):
    x = uniform(key, (6, 1))
    return Task(Examples(x, x[:, 0]), Examples(x, x[:, 0]))


@pytest.mark.parametrize("resume", [False, True])
def test_a_start_that_is_refused_leaves_the_folder_as_it_was(tmp_path, reference, resume):
    """So that the next one is not refused for it, nor goes on with its recipe."""
    for folder in (tmp_path / "new" / "run", tmp_path / "old"):
        (tmp_path / "old").mkdir(exist_ok=True)
        (tmp_path / "old" / "notes.txt").write_text("of the user")
        if resume:
            folder.mkdir(parents=True, exist_ok=True)
        before = contents(tmp_path)
        with pytest.raises(fmeta.InputError, match="task axis"):
            train(folder, sample=refused, recipe="json:dumps", resume=resume)
        assert contents(tmp_path) == {**before, **({"new": None} if "new" in str(folder) else {})}
        assert same_bits(train(folder, resume=resume), reference[1])
        assert not (folder / "recipe.json").exists()


def test_a_refused_resume_keeps_the_run(tmp_path):
    train(tmp_path, iterations=10)
    before = contents(tmp_path)
    with pytest.raises(fmeta.InputError, match="task axis"):
        train(tmp_path, iterations=20, sample=refused, resume=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_the_folder_of_checkpoints_is_not_taken_for_that_of_the_run(tmp_path, resume):
    train(tmp_path, iterations=10)
    before = contents(tmp_path)
    with pytest.raises(fmeta.InputError, match=rf"it holds the checkpoints of a run; .*give {tmp_path} to go on"):
        train(tmp_path / "checkpoints", resume=resume)
    assert contents(tmp_path) == before


def test_tasks_without_a_task_axis_are_reported_by_name():
    def sample(k, count):
        x = uniform(k, (6, 1))
        return Task(Examples(x, x[:, 0]), Examples(x, x[:, 0]))

    with pytest.raises(fmeta.InputError, match=r"fit\(sample=…\): tasks\.support\.y .*task axis"):
        train(sample=sample)


COUNTS = {"iterations": "fit(iterations", "meta_batch": "fit(meta_batch"}
COUNTS |= {"log_every": "Logging(every", "save_every": "Saving(every"}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -3])
def test_counts_below_one_are_refused_before_a_folder_is_made(tmp_path, name, value):
    expected = re.escape(f"{COUNTS[name]}={value}): expected a whole number, at least 1")
    with pytest.raises(fmeta.InputError, match=expected):
        train(tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


def test_class_data_is_no_source_of_tasks(tmp_path):
    data = fmeta.tasks.class_data({name: torch.zeros(4, 2) for name in "abc"})
    with pytest.raises(
        fmeta.InputError, match=r"sample is a ClassData; .*draw them from it by fmeta.tasks.episodes\(data"
    ):
        train(tmp_path / "run", sample=data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [3, torch.tensor(0.5), torch.arange(2)])
def test_what_is_not_one_key_is_refused(tmp_path, given):
    with pytest.raises(fmeta.InputError, match=r"fit: the key is .*; expected one key, int64 \[\]"):
        train(tmp_path / "run", key=given)
    assert not (tmp_path / "run").exists()


def test_an_unknown_scope_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(fmeta.InputError, match=r"scope='hole'.*did you mean 'whole'"):
        train(tmp_path / "run", scope="hole")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"key": fmeta.key(7)}, {"meta_batch": 3}])
def test_resume_with_another_key_or_batch_is_refused(tmp_path, change):
    """The rest of the run would see other tasks than the run it goes on with."""
    base = {"key": fmeta.key(0), "meta_batch": 2, "iterations": 4, "run_dir": tmp_path}
    learner = fmeta.maml(fmeta.models.mlp([1, 4, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    fmeta.fit(learner, fmeta.adam(1e-3), fmeta.tasks.sinusoid(), **base)
    with pytest.raises(fmeta.InputError, match="expected the same"):
        fmeta.fit(
            learner, fmeta.adam(1e-3), fmeta.tasks.sinusoid(), **base | {"iterations": 8, "resume": True} | change
        )
    with pytest.raises(fmeta.InputError, match=r"the run is at step 4|the run stands at step 4"):
        fmeta.fit(learner, fmeta.adam(1e-3), fmeta.tasks.sinusoid(), **base | {"iterations": 3, "resume": True})


def test_resume_needs_a_run(tmp_path):
    learner = fmeta.maml(fmeta.models.mlp([1, 4, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    settings = {"key": fmeta.key(0), "meta_batch": 2, "iterations": 4, "resume": True}
    for run_dir in (None, tmp_path / "mistyped"):
        with pytest.raises(fmeta.InputError, match="resume=True"):
            fmeta.fit(learner, fmeta.adam(1e-3), fmeta.tasks.sinusoid(), run_dir=run_dir, **settings)


def test_fields_of_the_groups_may_be_given_by_themselves():
    told = []
    given = {"key": fmeta.key(0), "iterations": 4, "meta_batch": 2}
    learner = fmeta.maml(fmeta.models.mlp([1, 4, 1]), fmeta.mse, optimizer=fmeta.sgd(0.01), steps=1)
    what = learner, fmeta.adam(1e-2), fmeta.tasks.sinusoid()
    fmeta.fit(*what, **given, log_every=2, loggers=[lambda step, values: told.append(step)])
    assert told == [2, 4]
    with pytest.raises(fmeta.InputError, match=r"fit\(log_evry=2\): no such argument; did you mean 'log_every'"):
        fmeta.fit(*what, **given, log_evry=2)
    with pytest.raises(fmeta.InputError, match=r"did you mean 'resume'"):
        fmeta.fit(*what, **given, resum=True)
    with pytest.raises(fmeta.InputError, match=r"expected gradient=fmeta.skipping\(\)"):
        fmeta.fit(*what, **given, skip_nonfinite=True)
    with pytest.raises(fmeta.InputError, match=r"fit\(log_every=9\): logging= says it too; expected it once"):
        fmeta.fit(*what, **given, logging=fmeta.Logging(every=5), log_every=9)
    with pytest.raises(fmeta.InputError, match=r"fit\(patience=3\): nothing validates; expected validate="):
        fmeta.fit(*what, **given, patience=3)
