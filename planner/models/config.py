"""Reads a `config.json` without transformers: auto class, dtype, and whether the model can be planned."""

import json
from collections.abc import Mapping
from typing import Any, Final

from planner.errors import ModelError
from planner.models.spec import AutoClass
from reshard.dtypes import dtype as dtype_named
from reshard.errors import UnknownDtypeError

# Ends of class names, in the order they are tried. `ForPreTraining` is BERT's masked head plus one that
# inference does not use.
_BY_CLASS_NAME: Final[tuple[tuple[str, AutoClass], ...]] = (
    ("ForCausalLM", "causal-lm"),
    ("LMHeadModel", "causal-lm"),
    ("ForMaskedLM", "masked-lm"),
    ("ForPreTraining", "masked-lm"),
    ("ForConditionalGeneration", "seq2seq-lm"),
)

# Encoder-only families, for configurations that name a bare model or no class at all.
_ENCODERS: Final = frozenset(
    (
        "albert",
        "bert",
        "big_bird",
        "camembert",
        "convbert",
        "data2vec-text",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "esm",
        "eurobert",
        "flaubert",
        "fnet",
        "funnel",
        "ibert",
        "layoutlm",
        "longformer",
        "megatron-bert",
        "mobilebert",
        "modernbert",
        "mpnet",
        "mra",
        "nezha",
        "nomic_bert",
        "nystromformer",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "squeezebert",
        "xlm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
        "yoso",
    )
)

# Other heads on a language model, which none of these auto classes builds.
_OTHER_HEADS: Final = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
)


def parse_config(text: str, where: str) -> dict[str, Any]:
    """The configuration in `text`; `where` names the file in error messages.

    Raises:
        ModelError: not JSON, not an object, without `model_type`, or quantized.
    """
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{where} holds a JSON {type(config).__name__}; a model configuration is an object")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(f"{where} has no model_type, so its architecture is unknown; add the key")
    if config.get("quantization_config"):
        raise ModelError(
            f"{where} describes a quantized checkpoint (quantization_config), whose tensors differ from the "
            "architecture's; plan the unquantized model instead"
        )
    return config


def auto_class_of(config: Mapping[str, Any], where: str) -> AutoClass:
    """Which auto class builds the model: by `architectures`, else by the family.

    Raises:
        ModelError: the class has a head that is neither a language model's nor absent.
    """
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{where}: architectures must be a list of class names, not {names!r}")
    is_encoder_decoder = bool(config.get("is_encoder_decoder"))
    for name in names:
        if name.endswith(_OTHER_HEADS):
            raise ModelError(
                f"{where} describes {name}, which does not model language; "
                "plans are for causal, sequence-to-sequence and masked language models"
            )
        if name.endswith("WithLMHeadModel"):
            break  # first releases of T5, XLM and others: the family decides
        for ending, auto_class in _BY_CLASS_NAME:
            if name.endswith(ending):
                # Conditional generation without an encoder-decoder is a decoder that also takes images.
                conditional = auto_class == "seq2seq-lm" and not is_encoder_decoder
                return "causal-lm" if conditional and not _is_t5(config) else auto_class
    return _by_family(config, is_encoder_decoder)


def _by_family(config: Mapping[str, Any], is_encoder_decoder: bool) -> AutoClass:
    if is_encoder_decoder or _is_t5(config):
        return "seq2seq-lm"
    if config["model_type"] in _ENCODERS and not config.get("is_decoder"):
        return "masked-lm"
    return "causal-lm"


def _is_t5(config: Mapping[str, Any]) -> bool:
    # Old T5 configurations leave is_encoder_decoder to the class's default.
    return config["model_type"] in {"t5", "mt5", "umt5", "longt5", "switch_transformers"}


def dtype_of(config: Mapping[str, Any], where: str) -> str | None:
    """Torch's name of the stored dtype, or None when the configuration does not say.

    Raises:
        ModelError: the dtype is unknown.
    """
    sections = (config, config.get("text_config"), config.get("decoder"))
    for section in sections:
        if not isinstance(section, Mapping):
            continue
        # transformers 5 writes `dtype`; earlier releases wrote `torch_dtype`.
        stated = section.get("dtype") or section.get("torch_dtype")
        if stated is None or stated == "auto":
            continue
        try:
            return dtype_named(str(stated)).name
        except UnknownDtypeError as error:
            raise ModelError(f"{where}: {error}") from error
    return None
