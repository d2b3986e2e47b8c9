"""What is said of an application."""


def verdict(burden, limits):
    if burden <= limits["granted_up_to"]:
        return "granted"
    return "looked at" if burden <= limits["looked_at_up_to"] else "refused"
