#!/usr/bin/env python3
"""Stands for a scheduler and a machine of Kubernetes, for the real API server: it runs containers as processes.

    kubelet.py NAMESPACE FOLDER

Everything of Kubernetes but its API server is played here, and nothing else is. Every pod of the namespace gets a place on one
machine, and its containers run as processes of this one, each in a folder of its own, with the arguments, the environment,
the config maps and the empty folders that the pod says. What the API server is told about them is what became of these
processes. A pod that is deleted gets its time to end by itself, is killed then, and is taken from the API server only when
all of its processes are gone; the logs are given to the API server, as it asks a kubelet for them.

There are no images. A container without a command is started as the entry point of Spark's own image does it, with the Spark of
SPARK_HOME. Three things are said otherwise than there, since all containers share one network: where the driver can be
reached, by which ports, and where it finds the API server.

What the image is called plays what cannot be had here:
  .../unschedulable   no machine has room for it
  .../missing         there is no such image
  .../oom             its driver is killed for its memory once it runs for a second
  .../evicted         its machine puts it out once it runs for a second
  .../preempted       the scheduler gives its place to another pod then, and deletes it with time to end

Its environment: KUBERNETES_MASTER, KUBERNETES_TOKEN and KUBERNETES_FOLDER as of deploy/cluster, SPARK_HOME and PYSPARK_PYTHON.
"""

import ctypes
import http.server
import json
import os
import shutil
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

ADDRESS = "127.0.0.1"
# With which a container ends that is killed.
KILLED = 137
# Of <linux/prctl.h>: orphans below come to this process.
PR_SET_CHILD_SUBREAPER = 36


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Server:
    """The API server."""

    def __init__(self, url, token, folder):
        self.url = url
        self.folder = folder
        self._context = ssl.create_default_context(cafile=os.path.join(folder, "apiserver.crt"))
        self._headers = {"Authorization": token}

    def ask(self, method, path, content=None, kind="application/json"):
        """The answer, or None where there is no such thing or somebody was quicker."""
        data = None if content is None else json.dumps(content).encode()
        headers = dict(self._headers, **{"Content-Type": kind})
        request = urllib.request.Request(self.url + path, method=method, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code in (404, 409):
                return None
            raise RuntimeError("{} {}: {} {}".format(method, path, error.code, error.read()))

    def patch_status(self, path, status):
        return self.ask("PATCH", path + "/status", {"status": status}, "application/merge-patch+json")


class Container:
    """A container that has been started."""

    def __init__(self, name, process, log):
        self.name, self.process, self.log = name, process, log
        self.started = now()
        self.finished = None

    def has_ended(self):
        if self.process.poll() is None:
            return False
        self.finished = self.finished or now()
        return True

    def signal(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def is_gone(self):
        """Whether nothing of it is left, its children included."""
        if self.process.poll() is None:
            return False
        try:
            # What it left behind is this process's by now. As long as nobody waits for one that has ended, it is there.
            while os.waitpid(-self.process.pid, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            pass
        try:
            os.killpg(self.process.pid, 0)
            return False
        except ProcessLookupError:
            return True

    def state(self, reason=None):
        if not self.has_ended():
            return {"running": {"startedAt": self.started}}
        code = self.process.returncode
        code = 128 - code if code < 0 else code
        if reason is not None:
            code = KILLED
        ended = {"exitCode": code, "startedAt": self.started, "finishedAt": self.finished}
        ended["reason"] = reason or ("Completed" if code == 0 else "Error")
        return {"terminated": ended}


class Pod:
    """A pod on this machine."""

    def __init__(self, kubelet, pod):
        self._kubelet, self.uid = kubelet, pod["metadata"]["uid"]
        self.name = pod["metadata"]["name"]
        self.path = "{}/{}".format(kubelet.pods, self.name)
        self.folder = os.path.join(kubelet.folder, self.uid)
        self.containers = {}
        self._told = None
        self._ending = None
        self._started = None
        self._played = None

    def follow(self, pod):
        """Does what is to be done now; gives whether there is more to do."""
        image = pod["spec"]["containers"][-1].get("image", "")
        play = image.rsplit("/", 1)[-1]
        if "deletionTimestamp" in pod["metadata"]:
            return self._end(pod)
        if play == "unschedulable":
            words = "0/1 nodes are available: 1 Insufficient memory."
            return self._tell(
                {"phase": "Pending", "conditions": [self._condition("PodScheduled", False, "Unschedulable", words)]}
            )
        if "nodeName" not in pod["spec"]:
            place = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": self.name},
                "target": {"kind": "Node", "name": self._kubelet.node},
            }
            self._kubelet.server.ask("POST", self.path + "/binding", place)
            return True
        if play == "missing":
            words = 'Back-off pulling image "{}"'.format(image)
            return self._tell(self._waiting(pod, "ImagePullBackOff", words))
        if not self.containers:
            maps = self._config_maps(pod)
            if maps is None:
                return self._tell(self._waiting(pod, "ContainerCreating", None))
            for container in pod["spec"]["containers"]:
                self._start(pod, container, maps)
            self._started = time.monotonic()
        driver = list(self.containers.values())[-1]
        if play == "preempted" and time.monotonic() > self._started + 1 and self._played is None:
            self._played = play
            self._tell(self._status(pod, driver))
            self._kubelet.server.ask("DELETE", self.path, {"apiVersion": "v1", "kind": "DeleteOptions"})
            return True
        if play in ("oom", "evicted") and time.monotonic() > self._started + 1 and self._played is None:
            self._played = play
            for container in self.containers.values():
                container.signal(signal.SIGKILL)
        return self._tell(self._status(pod, driver))

    def _status(self, pod, driver):
        ended = all([container.has_ended() for container in self.containers.values()])
        status = {"phase": "Running"}
        if ended:
            failed = any(container.process.returncode != 0 for container in self.containers.values())
            status = {"phase": "Failed" if failed else "Succeeded"}
        if self._played == "evicted" and ended:
            status.update(reason="Evicted", message="The node was low on resource: memory. Threshold quantity: 100Mi.")
        status["containerStatuses"] = [
            {
                "name": container.name,
                "ready": not container.has_ended(),
                "restartCount": 0,
                "image": "none",
                "imageID": "none",
                "started": True,
                "state": container.state("OOMKilled" if self._played == "oom" and container is driver else None),
            }
            for container in self.containers.values()
        ]
        status["podIP"] = ADDRESS
        status["podIPs"] = [{"ip": ADDRESS}]
        status["conditions"] = [self._condition("PodScheduled", True), self._condition("Ready", not ended)]
        if self._played == "preempted":
            words = "default-scheduler: preempting to accommodate a higher priority pod"
            status["conditions"].append(self._condition("DisruptionTarget", True, "PreemptionByScheduler", words))
        return status

    def _waiting(self, pod, reason, words):
        waiting = {"reason": reason}
        if words:
            waiting["message"] = words
        statuses = [
            {
                "name": one["name"],
                "ready": False,
                "restartCount": 0,
                "image": one.get("image", ""),
                "imageID": "",
                "state": {"waiting": waiting},
            }
            for one in pod["spec"]["containers"]
        ]
        return {
            "phase": "Pending",
            "conditions": [self._condition("PodScheduled", True)],
            "containerStatuses": statuses,
        }

    def _condition(self, kind, holds, reason=None, words=None):
        condition = {"type": kind, "status": "True" if holds else "False"}
        if reason:
            condition.update(reason=reason, message=words)
        return condition

    def _tell(self, status):
        if status != self._told and self._kubelet.server.patch_status(self.path, status) is not None:
            self._told = status
        return True

    def _end(self, pod):
        moment = time.monotonic()
        grace = pod["metadata"].get("deletionGracePeriodSeconds", 30)
        if self._ending is None:
            for container in self.containers.values():
                container.signal(signal.SIGTERM)
            self._ending = moment + grace
        # It may have been asked to end sooner since.
        self._ending = min(self._ending, moment + grace)
        if moment >= self._ending:
            self.kill()
        if not all([container.is_gone() for container in self.containers.values()]):
            # What the container's own process leaves behind goes with it.
            for container in self.containers.values():
                if container.has_ended():
                    container.signal(signal.SIGKILL)
            return True
        if self.containers:
            self._tell(self._status(pod, list(self.containers.values())[-1]))
        gone = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.uid},
        }
        self._kubelet.server.ask("DELETE", self.path, gone)
        return True

    def kill(self):
        for container in self.containers.values():
            container.signal(signal.SIGKILL)

    def remove(self):
        """Removes what is left of one that the API server has no more."""
        self.kill()
        for container in self.containers.values():
            container.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _config_maps(self, pod):
        """The folders of the pod's volumes by their names; None while a config map is missing."""
        folders = {}
        for volume in pod["spec"].get("volumes", []):
            folder = os.path.join(self.folder, "volumes", volume["name"])
            if "configMap" in volume:
                found = self._kubelet.server.ask(
                    "GET", "{}/configmaps/{}".format(self._kubelet.namespace, volume["configMap"]["name"])
                )
                if found is None:
                    return None
                os.makedirs(folder, exist_ok=True)
                for name, text in found.get("data", {}).items():
                    with open(os.path.join(folder, name), "w") as file:
                        file.write(text)
            elif "emptyDir" in volume:
                os.makedirs(folder, exist_ok=True)
            else:
                continue
            folders[volume["name"]] = folder
        return folders

    def _start(self, pod, container, folders):
        mounts = {
            mount["mountPath"]: folders[mount["name"]]
            for mount in container.get("volumeMounts", [])
            if mount["name"] in folders
        }

        def inside(text):
            for path in sorted(mounts, key=len, reverse=True):
                text = text.replace(path, mounts[path])
            return text

        environment = {
            name: os.environ[name]
            for name in ("PATH", "JAVA_HOME", "SPARK_HOME", "PYSPARK_PYTHON")
            if name in os.environ
        }
        environment.update(
            HOME=self.folder, LC_ALL="C.UTF-8", SPARK_LOCAL_IP=ADDRESS, KUBECONFIG=self._kubelet.kubeconfig_of(pod)
        )
        for entry in container.get("env", []):
            field = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            value = entry.get("value") or {"status.podIP": ADDRESS, "metadata.name": self.name}.get(field, "")
            environment[entry["name"]] = inside(value)
        arguments = [inside(argument) for argument in container.get("args", [])]
        command = container.get("command") or entry_point(arguments, environment, self._kubelet.server.url)
        if container.get("command"):
            command = command + arguments
        work = os.path.join(self.folder, "work-" + container["name"])
        os.makedirs(work)
        log = os.path.join(self.folder, container["name"] + ".log")
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command,
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.containers[container["name"]] = Container(container["name"], process, log)


def entry_point(arguments, environment, server):
    """What the entry point of Spark's image does with its arguments."""
    home = environment["SPARK_HOME"]
    if arguments[:1] == ["driver"]:
        said = {
            "spark.driver.bindAddress": ADDRESS,
            "spark.driver.host": ADDRESS,
            "spark.driver.port": "0",
            "spark.driver.blockManager.port": "0",
            "spark.kubernetes.driver.master": server,
        }
        confs = [word for name, value in said.items() for word in ("--conf", name + "=" + value)]
        return [os.path.join(home, "bin", "spark-submit")] + confs + ["--deploy-mode", "client"] + arguments[1:]
    if arguments[:1] == ["executor"]:
        names = sorted(
            (name for name in environment if name.startswith("SPARK_JAVA_OPT_")),
            key=lambda name: int(name.rsplit("_", 1)[1]),
        )
        memory = environment["SPARK_EXECUTOR_MEMORY"]
        java = os.path.join(environment["JAVA_HOME"], "bin", "java") if environment.get("JAVA_HOME") else "java"
        path = [os.path.join(home, "jars", "*")] + [
            environment[name] for name in ("HADOOP_CONF_DIR",) if name in environment
        ]
        said = {
            "--driver-url": "SPARK_DRIVER_URL",
            "--executor-id": "SPARK_EXECUTOR_ID",
            "--cores": "SPARK_EXECUTOR_CORES",
            "--app-id": "SPARK_APPLICATION_ID",
            "--hostname": "SPARK_EXECUTOR_POD_IP",
            "--resourceProfileId": "SPARK_RESOURCE_PROFILE_ID",
            "--podName": "SPARK_EXECUTOR_POD_NAME",
        }
        return (
            [java]
            + [environment[name] for name in names]
            + ["-Xms" + memory, "-Xmx" + memory, "-cp", ":".join(path)]
            + ["org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"]
            + [word for flag, name in said.items() for word in (flag, environment[name])]
        )
    return arguments


class Kubelet:
    """All pods of one namespace."""

    def __init__(self, server, namespace, folder):
        self.server, self.folder = server, folder
        self.namespace = "/api/v1/namespaces/" + namespace
        self.pods = self.namespace + "/pods"
        self.node = "played-" + namespace
        self.by_name = {}
        self._kubeconfigs = {}

    def kubeconfig_of(self, pod):
        """What lets a pod's processes into the API server, with the rights of its service account."""
        account = pod["spec"].get("serviceAccountName", "default")
        if account not in self._kubeconfigs:
            asked = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": 7200},
            }
            token = self.server.ask("POST", "{}/serviceaccounts/{}/token".format(self.namespace, account), asked)
            path = os.path.join(self.folder, "kubeconfig-" + account)
            with open(path, "w") as file:
                json.dump(kubeconfig(self.server, token["status"]["token"]), file)
            self._kubeconfigs[account] = path
        return self._kubeconfigs[account]

    def register(self, port):
        """Makes this the machine whose kubelet the API server asks for logs."""
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node}}
        self.server.ask("POST", "/api/v1/nodes", node)
        status = {
            "addresses": [{"type": "InternalIP", "address": ADDRESS}, {"type": "Hostname", "address": ADDRESS}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }
        self.server.patch_status("/api/v1/nodes/" + self.node, status)

    def step(self):
        """Looks once at all pods."""
        listed = self.server.ask("GET", self.pods)["items"]
        uids = {pod["metadata"]["uid"] for pod in listed}
        for name in [name for name, pod in self.by_name.items() if pod.uid not in uids]:
            self.by_name.pop(name).remove()
        for pod in listed:
            name = pod["metadata"]["name"]
            if name not in self.by_name:
                self.by_name[name] = Pod(self, pod)
            self.by_name[name].follow(pod)

    def end(self):
        for pod in self.by_name.values():
            pod.kill()


def kubeconfig(server, token):
    cluster = {"server": server.url, "certificate-authority": os.path.join(server.folder, "apiserver.crt")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
    }


def serve_logs(kubelet):
    """Answers the API server's questions for logs; gives the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            parts = self.path.split("?")[0].strip("/").split("/")
            pod = kubelet.by_name.get(parts[2]) if len(parts) == 4 and parts[0] == "containerLogs" else None
            container = pod.containers.get(parts[3]) if pod else None
            if container is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(os.path.getsize(container.log)))
            self.end_headers()
            with open(container.log, "rb") as file:
                shutil.copyfileobj(file, self.wfile)

        def log_message(self, *_):
            pass

    class Listener(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    listener = Listener((ADDRESS, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = kubelet.server.folder
    context.load_cert_chain(os.path.join(folder, "apiserver.crt"), os.path.join(folder, "apiserver.key"))
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    return listener.server_address[1]


def main():
    namespace, folder = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with open(os.environ["KUBERNETES_TOKEN"]) as file:
        token = file.read().strip().split(": ", 1)[1]
    server = Server(os.environ["KUBERNETES_MASTER"][len("k8s://") :], token, os.environ["KUBERNETES_FOLDER"])
    kubelet = Kubelet(server, namespace, folder)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    parent = os.getppid()
    kubelet.register(serve_logs(kubelet))
    print("ready", flush=True)
    try:
        # Nobody is left to stop it when whoever started it is gone.
        while not ending.is_set() and os.getppid() == parent:
            try:
                kubelet.step()
            except (RuntimeError, OSError) as error:
                print("kubelet:", error, file=sys.stderr, flush=True)
            ending.wait(0.2)
    finally:
        kubelet.end()


if __name__ == "__main__":
    main()
