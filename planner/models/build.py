"""From a `ModelSpec` to transformers' configuration object and model class. Nothing is instantiated."""

from typing import TYPE_CHECKING, Any, Final

from planner.errors import ModelError
from planner.models.spec import AutoClass, ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_AUTO_MODEL: Final[dict[AutoClass, str]] = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "masked-lm": "AutoModelForMaskedLM",
}

# Families whose configuration class sets `tie_word_embeddings` whatever the file says, although checkpoints
# that say false have a separate head, and loading them unties it again.
_TIE_OVERRIDDEN: Final = frozenset({"t5", "mt5", "umt5"})
_HEAD: Final = "lm_head.weight"


def build(spec: ModelSpec) -> "tuple[PreTrainedConfig, type]":
    """The configuration object and the concrete class that the auto class of `spec` selects.

    The class builds the parameters that a checkpoint of `spec` holds: where transformers would tie the head
    of T5 1.1 to its embeddings until the weights arrive, a subclass of the same name leaves it untied.

    Returns:
        The configuration and a subclass of `transformers.PreTrainedModel`.

    Raises:
        ModelError: a family that transformers does not know, values that its configuration refuses, or an
            auto class that does not cover the family.
    """
    # Imported here, because planning a shipped model needs no transformers.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if spec.config.get("auto_map") and spec.trust_remote_code:
        return _build_remote(spec)
    if spec.model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{spec.name}: transformers {_version()} has no model_type {spec.model_type!r}; "
            "check the spelling in config.json, or install a release that has it"
        )
    try:
        config_class = CONFIG_MAPPING[spec.model_type]
        # JSON has no infinity: save_pretrained writes it as an object, which from_dict does not read back.
        config: PreTrainedConfig = config_class.from_dict(
            config_class._decode_special_floats(dict(spec.config))
        )
    except Exception as error:  # each family has its own validation and exceptions
        raise ModelError(
            f"{spec.name}: transformers refuses the configuration ({type(error).__name__}: {error})"
        ) from error
    return config, _without_forced_tie(_class_of(spec, config), spec)


def _class_of(spec: ModelSpec, config: "PreTrainedConfig") -> type:
    import transformers

    mapping: Any = getattr(transformers, _AUTO_MODEL[spec.auto_class])._model_mapping
    if type(config) not in mapping:
        raise ModelError(
            f"{spec.name}: transformers has no {spec.auto_class} class for model_type {spec.model_type!r}; "
            "plans are for causal, sequence-to-sequence and masked language models"
        )
    listed = mapping[type(config)]
    # A few families list several classes; the configuration names one, and the first is the default.
    candidates: tuple[type, ...] = tuple(listed) if isinstance(listed, list | tuple) else (listed,)
    named = [c for name in spec.config.get("architectures") or [] for c in candidates if c.__name__ == name]
    return (named or list(candidates))[0]


def _without_forced_tie(model_class: type, spec: ModelSpec) -> type:
    says_untied = spec.config.get("tie_word_embeddings") is False
    tied: Any = getattr(model_class, "_tied_weights_keys", None) or {}
    if spec.model_type not in _TIE_OVERRIDDEN or not says_untied or _HEAD not in tied:
        return model_class
    kept = {target: source for target, source in tied.items() if target != _HEAD}
    # The original's module, because transformers reads the class's source file.
    attributes = {
        "_tied_weights_keys": kept,
        "__module__": model_class.__module__,
        "__doc__": model_class.__doc__,
    }
    return type(model_class.__name__, (model_class,), attributes)


def _build_remote(spec: ModelSpec) -> "tuple[PreTrainedConfig, type]":
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    source = str(spec.folder) if spec.folder is not None else str(spec.hub_id)
    auto_model = _AUTO_MODEL[spec.auto_class]
    reference = spec.config["auto_map"].get(auto_model)
    if reference is None:
        raise ModelError(f"{spec.name}: its auto_map names no {auto_model}, so no class is known to build it")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=True)
        model_class: type = get_class_from_dynamic_module(reference, source)
    except Exception as error:  # Python code of the model's authors may raise anything
        raise ModelError(
            f"{spec.name}: the Python code that comes with the model failed ({type(error).__name__}: {error})"
        ) from error
    return config, model_class


def _version() -> str:
    import transformers

    return str(transformers.__version__)
