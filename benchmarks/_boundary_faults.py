"""Faults at the boundary: in what modules, samplers and numbers of other people meet. Each is caught by a test."""

from typing import NamedTuple


class BoundaryFault(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    tests: str  # what pytest is given
    only: str = ""  # its -k


ZOO = "tests/models/test_zoo.py"
OVER_TASKS = "tests/operators/test_over_tasks.py"
STATE = "tests/models/test_module_state.py"
FROM_MODULE = "tests/models/test_from_module.py"
LOOK = "tests/gradients/test_first_look.py"
BATCHES = "tests/training/test_batches.py"

FAULTS = [
    # modules
    BoundaryFault(
        "give the padding row of an embedding its derivative",
        "operators/_embedding.py",
        "torch.where(padding[..., None], rows.detach(), rows)",
        "rows",
        OVER_TASKS,
        "TestEmbedding",
    ),
    BoundaryFault(
        "replace layer norm under one name alone",
        "operators/_over_tasks.py",
        "    **{each: call for name, call in _KERNELS.items() for each in spellings(name)},",
        "    **{getattr(F, name): call for name, call in _KERNELS.items() if hasattr(F, name)},",
        OVER_TASKS,
        "whatever_name",
    ),
    BoundaryFault(
        "leave functional dropout off in the inner loop",
        "models/_from_module.py",
        "    restless = copied(quiet).train()",
        "    restless = copied(quiet).eval()",
        FROM_MODULE,
        "any_way",
    ),
    BoundaryFault(
        "draw the same numbers at every call of one forward pass",
        "operators/_noise.py",
        "        return fold(self.key, self.drawn)",
        "        return fold(self.key, 0)",
        f"{OVER_TASKS} {FROM_MODULE}",
        "differ or apart or twice",
    ),
    BoundaryFault(
        "draw inside attention from nothing",
        "operators/_attention.py",
        "    if dropout_p > 0:",
        "    if False:",
        ZOO,
        "noise and MultiheadAttention",
    ),
    BoundaryFault(
        "let spectral norm stand still",
        "models/_module_layers.py",
        "        for _ in range(max(_ITERATIONS, self.n_power_iterations)):",
        "        for _ in range(0):",
        FROM_MODULE,
        "spectral",
    ),
    BoundaryFault(
        "run a recurrent layer with the weights it came with",
        "models/_module_layers.py",
        "            layer.register_forward_pre_hook(_list_weights)",
        "            pass",
        ZOO,
        "LSTM",
    ),
    BoundaryFault(
        "forget the state's bias in a GRU's new gate",
        "operators/_recurrent.py",
        "torch.tanh(new + torch.sigmoid(reset + of_reset) * of_new)",
        "torch.tanh(new + of_new)",
        ZOO,
        "GRU",
    ),
    BoundaryFault(
        "let a buffer move",
        "models/_module_state.py",
        "        if old is None or old[0] is new[0] or not _equal(old[0], new[0]):",
        "        if False:",
        STATE,
        "moves",
    ),
    BoundaryFault(
        "fill a table inside vmap",
        "models/_from_module.py",
        "        elif kept.filled or kept.written:",
        "        elif False:",
        STATE,
        "table",
    ),
    BoundaryFault(
        "lose what is inside a norm",
        "models/_module_norms.py",
        "        elif type(layer).forward in _OF_TORCH:",
        "        elif True:",
        FROM_MODULE,
        "something_in_it",
    ),
    BoundaryFault(
        "take constants in the dtype of the parameters",
        "models/_from_module.py",
        "c.to(device, dtypes.get(c.dtype, c.dtype))",
        "c.to(device, next(iter(dtypes.values()), c.dtype) if c.is_floating_point() else None)",
        FROM_MODULE,
        "dtype_they_came_with",
    ),
    BoundaryFault(
        "keep gradient checkpointing on",
        "models/_module_layers.py",
        "                setattr(layer, checkpointing, False)",
        "                pass",
        FROM_MODULE,
        "checkpointing",
    ),
    BoundaryFault(
        "normalise one example by itself",
        "operators/_norm.py",
        "    if x.shape[0] * math.prod(x.shape[2:]) == 1:",
        "    if False:",
        FROM_MODULE,
        "one_example",
    ),
    BoundaryFault(
        "leave torch.func's words as they are",
        "operators/_explain.py",
        "            words = explanation(error)\n            if words is not None:",
        "            words = explanation(error)\n            if False:",
        "tests/operators/test_explain.py",
        "named",
    ),
    # training
    BoundaryFault(
        "draw blocks of batches from what does not draw by its key",
        "training/_batches.py",
        "    if not _same(once, twice):",
        "    if False:",
        BATCHES,
        "said",
    ),
    BoundaryFault(
        "train on another number of tasks than was asked for",
        "training/_batches.py",
        "        if count != expected:",
        "        if False:",
        BATCHES,
        "another_number",
    ),
    BoundaryFault(
        "leave dropout off where tasks have no keys",
        "gradients/_first_look.py",
        "    return tasks._replace(key=split(",
        "    return tasks if True else tasks._replace(key=split(",
        LOOK,
        "have_no_keys",
    ),
    BoundaryFault(
        "train a gradient of zero",
        "training/_steps.py",
        "        if _trains_nothing(info) and _trains_nothing(step(state, tasks)[1]):",
        "        if False:",
        LOOK,
        "zero_everywhere or no_grad",
    ),
    BoundaryFault(
        "let a network change its input",
        "models/_from_module.py",
        "        if kept is not None and kept.changes_input:",
        "        if False:",
        STATE,
        "changed_in_place",
    ),
    BoundaryFault(
        "let the caller's tasks be changed in place",
        "gradients/_first_look.py",
        "    if changed:",
        "    if False:",
        LOOK,
        "changed_in_place",
    ),
    BoundaryFault(
        "adapt to numbers that are not finite",
        "gradients/_first_look.py",
        "        if finite and leaf.is_floating_point()",
        "        if False and leaf.is_floating_point()",
        LOOK,
        "not_finite",
    ),
    # files and numbers
    BoundaryFault(
        "take bytes of features for pixels",
        "tasks/_class_data.py",
        "x = x / 255.0 if data.pictures and leaf.ndim == 4 else x",
        "x = x / 255.0",
        "tests/tasks",
        "bytes",
    ),
    BoundaryFault(
        "take every deep grey for 16 bits",
        "tasks/_images.py",
        "shown = levels / (4095.0 if bits == 12 else 65535.0)",
        "shown = levels / 65535.0",
        "tests/tasks/test_image_folder.py",
        "deep_grey",
    ),
    BoundaryFault(
        "leave files that are no images out in silence",
        "tasks/_image_folder.py",
        "    warn_passed_over(call, [file for _, _, others in walked for file in others])\n",
        "",
        "tests/tasks/test_image_folder.py",
        "no_images",
    ),
    BoundaryFault(
        "cut most of a picture off in silence",
        "tasks/_images.py",
        " if max(read.size) > 2 * min(read.size)]",
        " if False]",
        "tests/tasks/test_image_folder.py",
        "cut_off",
    ),
    BoundaryFault(
        "call a whole run damaged",
        "training/_checkpoint.py",
        "        if not (_is_step(path.name) and path.is_dir()) and not any(",
        "        if False and not any(",
        "tests/training/test_checkpoint.py",
        "what_holds_checkpoints",
    ),
    BoundaryFault(
        "leave the folder of a refused start behind",
        "training/_run_files.py",
        "                _take_away(folder, absent)",
        "                pass",
        "tests/training/test_fit.py",
        "start_that_is_refused",
    ),
    BoundaryFault(
        "take 0.9 for a seed",
        "core/_random.py",
        "    if isinstance(n, bool) or not isinstance(n, Integral) or not -(1 << 63) <= int(n) < 1 << 64:",
        "    if not isinstance(n, (int, float, Integral)):",
        "tests/core/test_random.py",
        "seed_that_is_no_number",
    ),
    BoundaryFault(
        "give one task an interval",
        "evaluation/_evaluate.py",
        "        if len(values) < 2:",
        "        if len(values) < 1:",
        "tests/evaluation/test_evaluate.py",
        "single_task",
    ),
    BoundaryFault(
        "draw episodes of one way",
        "tasks/_episodes.py",
        'check_counts("episodes", least=2, ways=ways)',
        'check_counts("episodes", ways=ways)',
        "tests/tasks/test_episodes.py",
        "single_way",
    ),
]
