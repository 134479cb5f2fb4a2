"""What onnxruntime-genai reads before a graph: genai_config.json.

Source: the configuration reference of onnxruntime-genai, and what its own builder writes.
"""

from __future__ import annotations

from packager.core.records import Checkpoint

# Cells beyond the window, so as not to move all of them at each step: its own default on CPUs.
SLACK_TOKENS = 16


def genai_config(checkpoint: Checkpoint, graph: str) -> dict[str, object]:
    """The configuration of a decoder whose graph is in the file `graph`, as JSON values."""
    geometry, window = checkpoint.geometry, checkpoint.window.size_tokens
    decoder: dict[str, object] = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": graph,
        "head_size": geometry.head_dim,
        "hidden_size": geometry.hidden,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": geometry.heads,
        "num_hidden_layers": geometry.layers,
        "num_key_value_heads": geometry.kv_heads,
    }
    if window is not None:
        decoder["sliding_window"] = {
            "window_size": window,
            "slide_key_value_cache": False,
            "slide_inputs": False,
            "layers": list(range(geometry.layers)),
            "cache_slack": SLACK_TOKENS,
        }
    end = checkpoint.special_ids.endoftext
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": end,
            "eos_token_id": sorted(checkpoint.special_ids.stops),
            "pad_token_id": end,
            "context_length": checkpoint.context_tokens,
            "vocab_size": geometry.vocab,
            "decoder": decoder,
        },
        "search": {
            "do_sample": False,
            "max_length": checkpoint.context_tokens,
            "past_present_share_buffer": True,
        },
    }
