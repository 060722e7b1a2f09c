"""Device maps: checking one against a model, with all its errors at once, and shortening a correct one.

A map says where the *weights* of modules are stored. A module *executes* on its own GPU, or, when its weights
are on the CPU or on disk, on the main device: the first GPU of the map, else the CPU.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from planner.device_map.keys import Device, ancestors, covering_keys, covers, join, loaded_onto
from planner.errors import DeviceMapError
from planner.graph.schema import ModuleGraph, Node


def check(
    device_map: Mapping[str, Device], graph: ModuleGraph, *, num_gpus: int | None = None
) -> dict[str, Device]:
    """Check a device map and return the device of every module that owns tensors.

    Args:
        device_map: as `from_pretrained(device_map=…)` takes it.
        graph: the model.
        num_gpus: number of GPUs of the machine; None allows any index.

    Returns:
        Module fqn → GPU index, `cpu` or `disk`. Modules that own only scratch buffers and that no key
        covers are on the main device, and so are the root's own tensors.

    Raises:
        DeviceMapError: the map is wrong; the message has one sentence for every problem.
    """
    view = _View(device_map=dict(device_map), graph=graph, num_gpus=num_gpus)
    problems = view.bad_devices() or [
        *view.unknown_keys(),
        *view.root_keys(),
        *view.uncovered(),
        *view.covered_twice(),
        *view.captured(),
        *view.split_blocks(),
        *view.split_groups(),
        *view.split_ties(),
    ]
    if problems:
        raise DeviceMapError(_together(problems))
    return view.placed()


def compress(device_map: Mapping[str, Device], graph: ModuleGraph) -> dict[str, Device]:
    """The shortest equivalent map that still names every block.

    It also executes correctly where a longer map may not: Accelerate hooks a block that is one entry, and the
    hook moves its inputs to the GPU that it runs on. A map with one device is written as `{"": device}`,
    because otherwise buffers that no key covers stay on the CPU.

    Args:
        device_map: a map in which no key covers another.
        graph: the model.
    """
    view = _View(device_map=dict(device_map), graph=graph, num_gpus=None)
    devices = {name: view.device_of(name) for name in view.owners if view.keys_of(name)}
    if not devices:
        return dict(device_map)
    if len(set(devices.values())) == 1:
        return {"": next(iter(devices.values()))}
    above_blocks = {fqn for block in graph.blocks for fqn in ancestors(block)}
    below: dict[str, set[Device]] = {}
    for name, device in devices.items():
        for fqn in (*ancestors(name), name):
            below.setdefault(fqn, set()).add(device)
    result: dict[str, Device] = {}
    for name, device in devices.items():
        candidates = (fqn for fqn in (*ancestors(name), name) if fqn and fqn not in above_blocks)
        result[next((fqn for fqn in candidates if len(below[fqn]) == 1), name)] = device
    root = view.owners.get("")
    tensor_keys = [t.name for t in root.tensors if t.kind != "scratch"] if root is not None else []
    return result | dict.fromkeys(tensor_keys, view.main)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A map and its graph; each method that returns a list of sentences checks for one kind of problem."""

    device_map: dict[str, Device]
    graph: ModuleGraph
    num_gpus: int | None

    @property
    def owners(self) -> dict[str, Node]:
        return {node.name: node for node in self.graph.nodes if node.tensors}

    @property
    def main(self) -> Device:
        gpus = [device for device in self.device_map.values() if isinstance(device, int)]
        return min(gpus, default="cpu")

    def keys_of(self, module: str) -> list[str]:
        return covering_keys(module, self.device_map)

    def device_of(self, module: str) -> Device:
        keys = self.keys_of(module)
        return self.device_map[keys[-1]] if keys else self.main

    def runs_on(self, module: str) -> Device:
        device = self.device_of(module)
        return device if isinstance(device, int) else self.main

    def placed(self) -> dict[str, Device]:
        return {name: self.device_of(name) for name in self.owners}

    def bad_devices(self) -> list[str]:
        problems = []
        for key, device in self.device_map.items():
            if isinstance(device, bool) or not (isinstance(device, int) or device in ("cpu", "disk")):
                problems.append(f"{key!r} is on {device!r}; a device is a GPU's index, 'cpu' or 'disk'.")
            elif isinstance(device, int) and (
                device < 0 or (self.num_gpus is not None and device >= self.num_gpus)
            ):
                has = "a GPU's index starts at 0" if device < 0 else f"the machine has {self.num_gpus} GPU(s)"
                problems.append(f"{key!r} is on GPU {device}, but {has}.")
        return problems

    def unknown_keys(self) -> list[str]:
        known = {fqn for node in self.graph.nodes for fqn in (*ancestors(node.name), node.name)}
        tensors = {join(name, t.name) for name, node in self.owners.items() for t in node.tensors}
        root_tensors = {t.name for t in self.owners[""].tensors} if "" in self.owners else set()
        problems = []
        for key in self.device_map:
            if key in known or key in root_tensors or _is_dropout(key, known):
                continue
            if key in tensors:
                owner = key.rpartition(".")[0]
                problems.append(
                    f"{key!r} is a tensor; Accelerate places modules and computes wrong results for tensors:"
                    f" name {owner!r} instead."
                )
                continue
            nearest = difflib.get_close_matches(key, sorted(known - {""}), n=3)
            hint = f"; the nearest are {', '.join(map(repr, nearest))}" if nearest else ""
            problems.append(f"{key!r} is no module of {self.graph.model_class}{hint}.")
        return problems

    def root_keys(self) -> list[str]:
        problems = []
        if "" in self.device_map and len(self.device_map) > 1 and len(set(self.device_map.values())) > 1:
            problems.append("'' names the whole model, so no other module can be elsewhere: remove it.")
        root = self.owners.get("")
        for tensor in root.tensors if root is not None else ():
            device = self.device_map.get(tensor.name, self.main)
            if device != self.main:
                problems.append(
                    f"{tensor.name!r} belongs to the root module, which runs on the main device:"
                    f" put it on {_name(self.main)}, not on {_name(device)}."
                )
        return problems

    def uncovered(self) -> list[str]:
        problems = []
        for name, node in self.owners.items():
            if self.keys_of(name):
                continue
            if not name:
                problems += [
                    f"{t.name!r} is left out: Accelerate refuses the map unless it has this key."
                    for t in node.tensors
                    if t.kind != "scratch" and t.name not in self.device_map
                ]
            elif any(t.kind != "scratch" for t in node.tensors):
                problems.append(f"{name!r} is left out: give it, or a module that contains it, a device.")
            elif node.block is not None and self.main != "cpu":
                names = ", ".join(t.name for t in node.tensors)
                problems.append(
                    f"{name!r} owns buffers ({names}) that no key covers; they would stay on the CPU while"
                    f" it runs on {_name(self._near(name))}: make {name!r} one entry."
                )
        return problems

    def _near(self, module: str) -> Device:
        """Where a module that no key covers runs: where its submodules do."""
        below = [other for other in self.owners if covers(module, other) and self.keys_of(other)]
        return self.runs_on(below[0]) if below else self.main

    def covered_twice(self) -> list[str]:
        problems: dict[tuple[str, ...], None] = {}
        for name in self.owners:
            keys = [key for key in self.keys_of(name) if key]
            devices = {self.device_map[key] for key in keys}
            if len(keys) > 1 and (len(devices) > 1 or not isinstance(self.device_map[keys[0]], int)):
                problems.setdefault(tuple(keys))
        return [
            f"{_listed(keys)} overlap ({', '.join(_name(self.device_map[k]) for k in keys)}):"
            " keep the outer one, or list the inner ones without it."
            for keys in problems
        ]

    def captured(self) -> list[str]:
        tensors = {join(name, t.name): name for name, node in self.owners.items() for t in node.tensors}
        wrong: dict[tuple[str, str, Device, Device], None] = {}
        for tensor, (text, device) in loaded_onto(self.device_map, tensors).items():
            module = tensors[tensor]
            if text and self.keys_of(module) and device != self.device_of(module):
                wrong.setdefault((text, module, device, self.device_of(module)))
        return [
            f"{text!r} also matches {module!r}, because transformers compares prefixes of names: it would be"
            f" loaded onto {_name(device)} instead of {_name(meant)}; give {module!r} a key of its own."
            for text, module, device, meant in wrong
        ]

    def split_blocks(self) -> list[str]:
        problems, previous = [], self.main
        for block in self.graph.blocks:
            members = [n for n in self.owners if covers(block, n) and self.keys_of(n)]
            devices = sorted({self.runs_on(n) for n in members}, key=str)
            if len(devices) > 1:
                problems.append(
                    f"block {block!r} would run on {_listed(map(_name, devices), quoted=False)}: it adds its"
                    " input to its result, so it must run on one device."
                )
                continue
            if not devices:
                continue
            device, is_hooked = devices[0], any(covers(k, block) for k in self.device_map)
            if not is_hooked and device != self.main:
                problems.append(
                    f"block {block!r} runs on {_name(device)}, but the map has only keys of its submodules,"
                    f" so no hook moves its input there: list {block!r} itself."
                )
            elif not is_hooked and previous != device:
                problems.append(
                    f"block {block!r} gets its input from {_name(previous)}, but the map has only keys of its"
                    f" submodules, so no hook moves the input to {_name(device)}: list {block!r} itself, or"
                    " place it before the blocks on other devices."
                )
            previous = device
        return problems

    def split_groups(self) -> list[str]:
        problems = []
        for group in self.graph.co_located:
            members = [name for name in group if self._is_placed(name)]
            if len({self.runs_on(name) for name in members}) > 1:
                where = ", ".join(f"{name!r} on {_name(self.runs_on(name))}" for name in members)
                problems.append(f"these are combined outside any block and must run on one device: {where}.")
        return problems

    def _is_placed(self, module: str) -> bool:
        return bool(self.keys_of(module))

    def split_ties(self) -> list[str]:
        problems = []
        for group in self.graph.ties:
            owners = {tensor: tensor.rpartition(".")[0] for tensor in group}
            placed = {
                tensor: self.device_of(owner) for tensor, owner in owners.items() if self.keys_of(owner)
            }
            if len(set(placed.values())) > 1:
                where = ", ".join(f"{tensor!r} on {_name(device)}" for tensor, device in placed.items())
                problems.append(f"these are one tied tensor and must be on one device: {where}.")
        return problems


def _is_dropout(key: str, known: set[str]) -> bool:
    # Accelerate's automatic maps list dropouts. The graph does not have them, because they own no tensors and
    # do nothing in evaluation mode, so a key for one has no effect.
    parent, _, last = key.rpartition(".")
    return parent in known and "drop" in last


def _name(device: Device) -> str:
    return f"GPU {device}" if isinstance(device, int) else {"cpu": "the CPU", "disk": "disk"}[device]


def _listed(words: Iterable[str], *, quoted: bool = True) -> str:
    items = [repr(word) if quoted else word for word in words]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _together(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"the device map is wrong: {problems[0]}"
    lines = "\n".join(f"- {problem}" for problem in problems[:_MOST_SHOWN])
    more = len(problems) - _MOST_SHOWN
    rest = f"\n- and {more} more." if more > 0 else ""
    return f"the device map is wrong in {len(problems)} places:\n{lines}{rest}"


#: A limit, because a map of another model has thousands of errors.
_MOST_SHOWN = 40
