"""At home in the ecosystem: probes in other people's training, their adapters and configurations in, ours out."""
