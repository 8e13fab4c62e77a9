"""vLLM behind the gateway: its flags, its plugin, its proof."""
