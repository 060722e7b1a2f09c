"""Why a derived role is not the one that somebody lists. A difference without a reason is shown as such."""

from typing import Any, Final

NONE_YET: Final = "**no reason known**"
_TRANSPOSED: Final = (
    "the same cut: the parameter is stored with its inputs before its outputs, and the plan's words are about"
    " its dimensions"
)
_TOWERS: Final = (
    ("vision", "image_embed", "image_encoder", "visual"),
    ("audio", "speech", "word_timestamp_encoder"),
)
#: Models of which more could be cut than is derived.
INCOMPLETE: Final = {
    "dbrx": "experts lie end to end in one matrix, and the trace runs one of them: they stay whole",
    "prophetnet": "self-attention picks relative positions from a tensor that has heads and tokens in one "
    "dimension: its heads stay together",
}
_OTHERS: Final = {
    "nothing": {
        "bitnet": "a norm over all features stands before each of its output projections",
    },
    "autotp": {
        "bitnet": "a norm over all features stands before both: ranks cannot norm apart",
        "zaya": "AutoTP takes two of the router by place and name; their inputs are whole on every rank",
        "zamba2": "adapters are missed by name; Mamba's output follows a gated norm over a whole group",
        "prophetnet": "AutoTP takes relative positions by a norm's place; their input is whole on every rank",
        "granite_speech": "a prompt of text runs neither the encoder of speech nor its projector",
        "granite_speech_plus": "a prompt of text runs neither the encoder of speech nor its projector",
        "dbrx": "AutoTP takes the router by a norm's place; its input is whole on every rank",
        "phimoe": "AutoTP takes the router by its place before a norm; its input is whole on every rank",
        "granitemoehybrid": "two are missed by name; Mamba's output follows a norm over all heads",
        "bamba": "attention is missed by name; Mamba's output follows a norm over all heads",
    },
}


def reason_for(row: dict[str, Any], beside: str, name: str) -> str:
    """The reason for one difference.

    Args:
        row: of the table.
        beside: `plan`, `autotp`, or `nothing` where no role was derived.
        name: the weight, for a plan.
    """
    known = _OTHERS.get(beside, {}).get(row["model_type"])
    if known is not None:
        return known
    if beside == "plan":
        if name == "lm_head":
            return "the plan slices a whole input for the head to save memory; nothing before it is cut"
        return _TRANSPOSED if _is_transposed(row, name) else NONE_YET
    if beside == "autotp":
        return "; ".join(dict.fromkeys(_autotp(row["autotp"])))
    return NONE_YET


def _is_transposed(row: dict[str, Any], name: str) -> bool:
    """Whether all that differs are experts with columns and rows exchanged."""
    swapped = {("packed_rowwise", "column"), ("rowwise", "column"), ("colwise", "row")}
    return "experts" in name and all((style, ours) in swapped for _, style, ours in row["plan"]["differ"])


def _autotp(found: dict[str, Any]) -> list[str]:
    reasons = []
    if found["ours"]:
        reasons.append("AutoTP goes by names and by norms' places, which miss those that are only derived")
    for name in found["theirs"]:
        if any(word in name for words in _TOWERS for word in words):
            reasons.append("a prompt of text does not run the tower")
        elif "indexer.wk" in name:
            reasons.append("`indexer.wk` stands before a norm, but its input is whole on every rank")
        elif "cross_attn" in name:
            reasons.append("cross-attention runs with images only")
        else:
            reasons.append(NONE_YET)
    return reasons
