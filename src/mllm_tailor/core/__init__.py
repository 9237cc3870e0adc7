"""What every other room stands on: samples, registries, files, safe media, devices. No torch outside `device`."""
