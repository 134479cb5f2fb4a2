"""Text to ids: tokenizer, infilling layout, repository context, tasks."""
