"""The frozen base, the chat renderer, the adapter layers and the PEFT files they are kept in."""
