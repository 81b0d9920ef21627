"""The loop of pre-training: phases, steps, evaluation, alarms."""
