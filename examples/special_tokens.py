"""StarCoder2's 38 special tokens, in the order of their ids (0 to 37), and a tokenizer on them."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL_TOKENS = (
    "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <repo_name> <file_sep> "
    "<issue_start> <issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> "
    "<jupyter_output> <jupyter_script> <empty_output> <code_to_intermediate> "
    "<intermediate_to_code> <pr> <pr_status> <pr_is_merged> <pr_base> <pr_file> <pr_base_code> "
    "<pr_diff> <pr_diff_hunk> <pr_comment> <pr_event_id> <pr_review> <pr_review_state> "
    "<pr_review_comment> <pr_in_reply_to_review_id> <pr_in_reply_to_comment_id> "
    "<pr_diff_hunk_comment_line> <NAME> <EMAIL> <KEY> <PASSWORD>"
).split()


def byte_level_bpe(alphabet: Sequence[str], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """A byte-level BPE built like StarCoder2's: its special ids, then `alphabet`, then `merges`."""
    words = [*SPECIAL_TOKENS, *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer
