"""Model types whose configuration in transformers 5.23 has a `base_model_tp_plan`. Pure data.

A test compares them with the installed release of transformers.
"""

from typing import Final

# fmt: off
PLANNED: Final = frozenset({
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "bailing_hybrid", "beam", "cohere",
    "cohere2", "cohere2_moe", "cohere_compass_text", "cwm", "deepseek_v2", "deepseek_v3",
    "deepseek_v32", "deepseek_v4", "doge", "dots1", "dots3_note_text", "ernie4_5", "ernie4_5_moe",
    "esmc", "eurobert", "exaone4", "exaone_moe", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text",
    "gemma3n_text", "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite",
    "glm_moe_dsa", "gpt_neox", "granite", "granite_swa", "granitemoe", "granitemoe_swa",
    "granitemoehybrid", "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_moe", "hy_v3", "hy_v4",
    "hyperclovax", "inkling2_text", "inkling_text", "internlm3", "iquestcoder", "jais2", "jamba",
    "kimi_linear", "kolibri1", "laguna", "lfm2_moe", "llama", "llama4", "llama4_text", "longcat_flash",
    "mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text", "ministral",
    "ministral3", "mistral", "mixtral", "nanochat", "nemotron", "nemotron_h", "neomme", "olmo", "olmo2",
    "olmo3", "olmo_hybrid", "olmoe", "phi", "phi3", "phi4_multimodal", "phimoe", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "qwen4_exp_text",
    "seed_oss", "smollm3", "solar_open", "starcoder2", "ultrabert", "vaultgemma", "youtu",
})
# fmt: on
