"""What the server does with a request between its HTTP dialect and the runtime."""
