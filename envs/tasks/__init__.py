"""The bundled tasks: one file and one XML each."""
