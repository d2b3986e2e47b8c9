"""What this Python is and has, as JSON on the standard output. The argument is a Spark installation, or nothing."""

import json
import os
import platform
import re
import sys
from importlib import metadata


def version_of(info):
    version = "%d.%d.%d" % (info.major, info.minor, info.micro)
    return version if info.releaselevel == "final" else version + info.releaselevel[0] + str(info.serial)


def url_of(package):
    try:
        found = json.loads(package.read_text("direct_url.json") or "null")
    except Exception:
        return None
    if not isinstance(found, dict) or "url" not in found:
        return None
    vcs = found.get("vcs_info")
    if not vcs:
        return found["url"]
    asked = vcs.get("requested_revision")
    return "%s+%s%s" % (vcs.get("vcs"), found["url"], "@" + asked if asked else "")


def changed(folder):
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def spark_version(home):
    for place in ("python/pyspark/version.py", "version.py"):
        try:
            with open(os.path.join(home, place), encoding="utf-8") as file:
                found = re.search(r"__version__[^=]*=\s*[\"']([^\"']+)[\"']", file.read())
        except OSError:
            continue
        if found:
            return found.group(1)
    return None


def main():
    home = sys.argv[1] if len(sys.argv) > 1 else ""
    # What the current directory has is not what drivers have.
    path = [folder for folder in sys.path if folder]
    # Before they are read: what changes meanwhile must be noticed.
    folders = [[folder, changed(folder)] for folder in path]
    packages = []
    for package in metadata.distributions(path=path):
        try:
            name, version = package.metadata["Name"], package.version
            requires = [str(line) for line in package.requires or []]
        except Exception:
            continue
        if name and version:
            packages.append({"name": name, "version": version, "requires": requires, "url": url_of(package)})
    python = sys.implementation
    answer = {
        "markers": {
            "implementation_name": python.name,
            "implementation_version": version_of(python.version),
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": platform.python_version(),
            "python_version": ".".join(platform.python_version_tuple()[:2]),
            "sys_platform": sys.platform,
        },
        "packages": packages,
        "folders": folders,
        "spark": spark_version(home) if home else None,
    }
    json.dump(answer, sys.stdout)


main()
