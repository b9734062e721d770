"""How one model answers: its contract, its queue, its batches, its sessions on a device."""
