"""Other tools: probes in their training, and exchange of adapters and configurations."""
