"""What the settings of the rules must keep to."""


def check_probability(name, value):
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, but settings.json says {value}")


def check_settings(settings):
    for name, value in settings.items():
        check_probability(name, value)
    return settings
