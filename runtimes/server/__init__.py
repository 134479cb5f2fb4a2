"""What the server does with a request between its HTTP dialect and the runtime."""

# The packages of the server, all of them pure Python, and what they need in their turn.
REQUIRES = ("starlette", "uvicorn", "anyio", "click", "h11", "idna", "typing_extensions")
