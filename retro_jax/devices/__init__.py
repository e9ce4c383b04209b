"""Where arrays live: the mesh, the processes, the compiled step."""
