"""The APIs that the server speaks, each in a file of its own: body to request, results to answer.

A new one is one more file and one more name here. endpoint.py says what a dialect is made of;
fields.py, logprobs.py and raw_fim.py are what several of them share.
"""

from runtimes.server.dialects import llamacpp, ollama, openai, tasks, tgi

DIALECTS = (openai.DIALECT, llamacpp.DIALECT, ollama.DIALECT, tgi.DIALECT, tasks.DIALECT)
