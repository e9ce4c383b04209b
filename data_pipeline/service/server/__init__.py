"""The parts that all servers share: admission, deadlines, health, following versions."""
