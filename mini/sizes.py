"""The miniature's config.json: the published layout with small numbers."""

from typing import Any

CODEBOOKS = 8
CODES = 256
LATENT = 32
HIDDEN = 256
FRAME_SAMPLES = 1920

_PUBLISHED_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
CODEC: dict[str, Any] = {
    "audio_channels": 1,
    "codebook_dim": LATENT,
    "codebook_size": CODES,
    "compress": 2,
    "dilation_growth_rate": 2,
    "head_dim": 32,
    "hidden_act": "gelu",
    "hidden_size": 128,
    "intermediate_size": 512,
    "kernel_size": 7,
    "last_kernel_size": 3,
    "layer_scale_initial_scale": 0.01,
    "max_position_embeddings": 8000,
    "norm_eps": 1e-5,
    "num_attention_heads": 4,
    "num_filters": 16,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "num_quantizers": CODEBOOKS,
    "num_residual_layers": 1,
    "num_semantic_quantizers": 1,
    "pad_mode": "constant",
    "residual_kernel_size": 3,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "sampling_rate": 24000,
    "sliding_window": 250,
    "trim_right_ratio": 1.0,
    "upsample_groups": 128,
    "upsampling_ratios": [8, 5, 24],
    "use_cache": False,
    "use_causal_conv": True,
    "use_conv_shortcut": False,
    "vector_quantization_hidden_dimension": LATENT,
}
BACKBONE: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "audio_num_codebooks": CODEBOOKS,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": 768,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        **_PUBLISHED_ROPE,
        "low_freq_factor": 0.125,
        "high_freq_factor": 0.5,
        "original_max_position_embeddings": 1024,
    },
    "vocab_size": CODES + 3,
}
DEPTH_DECODER: dict[str, Any] = {
    **BACKBONE,
    "audio_embedding_dim": HIDDEN,
    "head_dim": 32,
    "hidden_size": 128,
    "intermediate_size": 384,
    "max_position_embeddings": 33,
    "num_hidden_layers": 2,
    "rope_parameters": {
        **_PUBLISHED_ROPE,
        "low_freq_factor": 0.001953125,
        "high_freq_factor": 0.0078125,
        "original_max_position_embeddings": 16,
    },
}
LANGUAGE_MODEL: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": 640,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"mrope_section": [8, 12, 12], "rope_theta": 1000000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
}
AUDIO_ENCODER: dict[str, Any] = {
    "activation_function": "gelu",
    "d_model": 128,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "encoder_layers": 4,
    "max_source_positions": 1500,
    "n_window": 100,
    "num_mel_bins": 128,
    "output_dim": HIDDEN,
    "scale_embedding": False,
}
VISION: dict[str, Any] = {
    "depth": 1,
    "fullatt_block_indexes": [0],
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
}
"""Nothing of it is stored; without these numbers other implementations would make a tower of the published size."""
