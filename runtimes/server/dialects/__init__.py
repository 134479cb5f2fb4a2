"""The HTTP side of the server, without a framework.

One small file for each dialect, which only translates a body to an ask and results back: openai,
llamacpp, ollama, tgi. The others hold what they share.
"""
