"""The machine a run executes on: device, arithmetic, process, ranks."""
