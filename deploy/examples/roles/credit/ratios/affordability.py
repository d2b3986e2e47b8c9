"""What somebody can afford."""


def burden(income, payments):
    """The part of a month's income that goes into payments; all of it where there is no income."""
    return min(1.0, payments / income) if income > 0 else 1.0
