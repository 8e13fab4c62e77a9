"""The HTTP API in the shape of OpenAI, in front of the engine."""
