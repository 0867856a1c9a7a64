"""The control loop of a robot in real time: processes, deadlines, safety and reports."""
