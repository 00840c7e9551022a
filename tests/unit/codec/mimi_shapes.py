"""Shapes of small Mimis that are decoded in different ways."""

from typing import Any

SMALL: dict[str, Any] = {
    "sampling_rate": 2400,
    "upsampling_ratios": [3, 2],
    "hidden_size": 16,
    "num_filters": 4,
    "codebook_size": 32,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "sliding_window": 9,
    "upsample_groups": 16,
}

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads of odd width": {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": 6},
    "one key-value head, biases": {"num_key_value_heads": 1, "attention_bias": True, "num_hidden_layers": 3},
    "residual layers": {"num_residual_layers": 2, "dilation_growth_rate": 3, "compress": 1, "residual_kernel_size": 5},
    "edges repeated": {"pad_mode": "replicate"},
    "shortcut convolutions": {"use_conv_shortcut": True, "kernel_size": 4, "last_kernel_size": 1},
    "no projections": {"vector_quantization_hidden_dimension": 16, "codebook_dim": 16},
    "two semantic codebooks": {"num_semantic_quantizers": 2, "num_quantizers": 5},
    "a window of itself": {"sliding_window": 1},
    "a window of one frame": {"sliding_window": 2},
    "a window longer than the reply": {"sliding_window": 1000},
    "three stages, dense upsampling": {"upsampling_ratios": [2, 5, 3], "upsample_groups": 1},
    "four positions a frame": {"frame_rate": 100.0, "sliding_window": 7},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}
