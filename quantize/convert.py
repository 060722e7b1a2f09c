"""Quantize a checkpoint: streamed, in bounded memory and resumable, by means of `reshard`."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec

from reshard.cuts import CHUNKS
from reshard.encoding import Encoder
from reshard.errors import CannotSplitError, UnsupportedSourceError
from reshard.formats.base import Source
from reshard.job import Job, Request
from reshard.rules import Rules
from reshard.run import Report, reshard
from reshard.tensors import LogicalTensor

from .errors import GroupSizeError, NothingToQuantizeError
from .formats.base import Output
from .select import Decision, decide, quantized


class Quantization:
    """The `reshard.encoding.Transform` that quantizes a checkpoint."""

    def __init__(self, source: Source, output: Output, decisions: Mapping[str, Decision]) -> None:
        """Prepare.

        Args:
            source: the plain checkpoint.
            output: the format.
            decisions: of `quantize.select.decide`.

        Raises:
            UnsupportedSourceError: the checkpoint is quantized already.
            CheckpointError: a weight that the format has no place for.
        """
        check_unquantized(source)
        self._source, self._output, self._decisions = source, output, decisions
        self._made = {name: self._derived(name) for name in quantized(decisions)}

    def _derived(self, name: str) -> dict[str, LogicalTensor]:
        """The tensors that replace a weight; errors of schemes, which know shapes only, get its name."""
        try:
            return self._output.derived(name, self._source.tensors[name])
        except GroupSizeError as error:
            if name in str(error):
                raise
            raise GroupSizeError(f"{name}: {error}") from None

    def apply(self, source: Source) -> Source:
        """The source with codes and scales instead of weights, and the recipe in its configuration."""
        tensors: dict[str, LogicalTensor] = {}
        for name, tensor in source.tensors.items():
            tensors |= self._made.get(name, {name: tensor})
        config = dict(source.model.config)
        recipe = self._output.config(source, self._decisions)
        if recipe is not None:
            config["quantization_config"] = recipe
        model = msgspec.structs.replace(source.model, config=config)
        return msgspec.structs.replace(source, tensors=tensors, model=model)

    def derived(self) -> Mapping[str, tuple[str, ...]]:
        """Weight → codes and scales."""
        return {name: tuple(made) for name, made in self._made.items()}

    def encoder(self, name: str) -> Encoder:
        """A new encoder of the weight called `name`."""
        return self._output.encoder(name, self._source.tensors[name])


def check_unquantized(source: Source) -> None:
    """Check that the checkpoint is not quantized already.

    Raises:
        UnsupportedSourceError: the configuration says that the checkpoint is quantized.
    """
    recipe = source.model.config.get("quantization_config")
    if recipe:
        method = recipe.get("quant_method", "something") if isinstance(recipe, dict) else "something"
        raise UnsupportedSourceError(
            f"{source.folder.path('')} is quantized already, with {method}; start from the original weights, "
            "or give it to `dequantize`"
        )


def check_chosen(source: Source, decisions: Mapping[str, Decision]) -> None:
    """Check that at least one tensor is chosen; otherwise the output would be a plain copy.

    Raises:
        NothingToQuantizeError: no tensor is chosen.
    """
    if quantized(decisions):
        return
    reasons = Counter(d.reason for d in decisions.values() if len(source.tensors[d.name].shape) == 2)
    why = "".join(f"; {reason} ({count} matrices)" for reason, count in reasons.most_common(3))
    raise NothingToQuantizeError(f"{source.folder.path('')} has nothing to quantize{why}")


def _check_chunks(source: Source, quantization: Quantization, degrees: Iterable[int]) -> None:
    """Check that no weight is cut over ranks whose chunks are not whole rows.

    Raises:
        CannotSplitError: one is; the message says how many groups would work.
    """
    rules = Rules(source.model, source.tensors)
    coded = [rule for rule in map(rules.rule, quantization.derived()) if rule.outputs or rule.inputs]
    wanted = [degree for degree in degrees if degree > 1]
    chunked = [r.name for r in coded if any(n.endswith(CHUNKS) for n in quantization.derived()[r.name])]
    if not wanted or not chunked:
        return
    rows = {rule.name: source.tensors[rule.name].shape[0] for rule in coded}

    def works(groups: int) -> bool:
        cuts = [(rule.outputs, rows[rule.name] // groups) for rule in coded]
        coarse = [msgspec.structs.replace(cut, ratio=ratio) for cut, ratio in cuts if cut is not None]
        return all(cut.works(degree) for cut in coarse for degree in wanted)

    common = math.gcd(*rows.values())
    fitting = [n for n in range(1, common + 1) if common % n == 0 and works(n)]
    raise CannotSplitError(
        f"{chunked[0]} would have chunks that are no whole rows, which no rank's part of it is made of; at "
        f"`tp_size={', '.join(map(str, wanted))}` `groups={', '.join(map(str, fitting)) or '(none)'}` works"
    )


def quantize(
    request: Request,
    output: Output,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    progress: Callable[[int], None] = lambda _: None,
    started: Callable[[Job], None] = lambda _: None,
    decided: Callable[[dict[str, Decision]], None] = lambda _: None,
) -> Report:
    """Quantize a checkpoint.

    Args:
        request: what `reshard` is asked for; its format must be the output's target.
        output: format and scheme.
        include: patterns of what else is quantized; see `quantize.select.decide`.
        exclude: patterns of what is not.
        progress: told of bytes read, from any thread.
        started: told of the plan before the first byte is moved.
        decided: told what happens to every tensor.

    Raises:
        CheckpointError: the checkpoint, or the request, makes no sense; nothing is left behind.
    """

    def transform(source: Source) -> Quantization:
        check_unquantized(source)
        decisions = decide(source, include, exclude)
        decided(decisions)
        check_chosen(source, decisions)
        quantization = Quantization(source, output, decisions)
        _check_chunks(source, quantization, request.degrees)
        return quantization

    wanted = msgspec.structs.replace(request, format=output.target)
    return reshard(wanted, progress=progress, started=started, transform=transform)
