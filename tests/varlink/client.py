"""What a varlink client that knows nothing of opm can do with it: python client.py SOCKET

The package reads the interface by introspection, and checks every call and reply against it.
"""

import json
import signal
import socket
import sys

import varlink

signal.alarm(60)
path = sys.argv[1]
client = varlink.Client("unix:" + path)


def fails(call, error, **parameters):
    try:
        call()
    except varlink.VarlinkError as found:
        assert found.error() == error, found
        assert parameters.items() <= found.parameters().items(), found
        return found
    raise AssertionError(f"no {error}")


# Introspection.
assert client.get_interfaces() == ["org.varlink.service", "io.opm.Control"]
assert client.info["product"] == "opm"
control = client.get_interface("io.opm.Control")
with open(path.replace("run/control.sock", "methods"), "w") as methods:
    for name, member in control.members.items():
        if isinstance(member, varlink.scanner._Method):
            methods.write(name + "\n")
service = client.get_interface("org.varlink.service")
assert "GetInterfaceDescription" in service.members

with client.open("io.opm.Control") as opm:
    rows = opm.List([])["instances"]
    assert [row["instance"] for row in rows] == ["a", "b"], rows
    assert all(row["phase"] == "up" and row["pid"] > 1 for row in rows), rows
    assert opm.List(units=["a"], internal=False)["instances"][0]["unit"] == "a"
    pid = rows[0]["pid"]

    # A stop of `a` stops `b` before it, which requires it; the wait shows what happens on the way.
    assert opm.Stop(units=["a"], reason="maintenance")["instances"] == ["a"]
    seen = list(opm.Wait(["a"], "down", _more=True))
    assert seen[-1]["result"] == "reached", seen
    assert all("result" not in step for step in seen[:-1]), seen
    row = opm.List(["a"])["instances"][0]
    assert opm.List(["b"])["instances"][0]["phase"] == "waiting"
    assert row["phase"] == "down" and row["held_by"] and "maintenance" in row["why"], row
    # What is stopped is never ready by itself.
    assert list(opm.Wait(["a"], "ready", 10_000, _more=True))[-1]["result"] == "failed"

    assert opm.Start(["a"])["instances"] == ["a"]
    assert list(opm.Wait(units=["a", "b"], condition="ready", _more=True))[-1]["result"] == "reached"
    # Without `more` the one reply is the last.
    assert opm.Wait(["a"], "settled")["result"] == "reached"
    assert opm.List(["a"])["instances"][0]["pid"] != pid

    assert opm.Show("a")["unit"]["name"] == "a"
    assert opm.Why("b")["lines"]
    assert opm.Info()["shutting_down"] is False
    state = opm.State()["state"]
    assert list(state["desired"]["units"]) == list(state["instances"]) == ["a", "b"], state
    assert opm.Kill(["a"], "CONT")["instances"] == ["a"]
    assert opm.Restore()["pending"] == []
    plan = opm.Plan("elsewhere", [{"path": "/x/c.yaml", "text": "command: [true]\n"}])
    assert [change["unit"] for change in plan["changes"]] == ["c"], plan
    broken = {"path": "/x/c.yaml", "text": "comand: [true]\n"}
    bad = fails(lambda: opm.Apply("elsewhere", [broken]), "io.opm.Control.BadUnits")
    assert "did you mean `command`?" in bad.parameters()["text"], bad

    # Errors.
    fails(lambda: opm.List(["nope"]), "io.opm.Control.NoSuchUnit", reason="no unit `nope`")
    fails(lambda: opm.Reload(["a"]), "io.opm.Control.Refused")
    fails(lambda: opm.Wait(["a"], "soon"), "org.varlink.service.InvalidParameter", parameter="condition")


def raw(*calls, count=None, over=False):
    """Sends calls as they are, all at once; the replies to them."""
    with socket.socket(socket.AF_UNIX) as to:
        to.connect(path)
        to.settimeout(10)
        to.sendall(b"".join(json.dumps(call).encode() + b"\0" for call in calls))
        if over:
            to.shutdown(socket.SHUT_WR)
        replies, rest = [], b""
        while len(replies) < (len(calls) if count is None else count):
            got = to.recv(65536)
            assert got, f"closed after {len(replies)} replies"
            *whole, rest = (rest + got).split(b"\0")
            replies += [json.loads(message) for message in whole]
        return replies


def call(method, more=None, **parameters):
    return {"method": "io.opm.Control." + method, "parameters": parameters, **(more or {})}


# Names and types that the package does not let through.
for bad, error in [
    (call("Nope"), ("org.varlink.service.MethodNotFound", {"method": "io.opm.Control.Nope"})),
    (call("Show"), ("org.varlink.service.InvalidParameter", {"parameter": "unit"})),
    (call("Show", unit=3), ("org.varlink.service.InvalidParameter", {"parameter": "unit"})),
    (call("List", units="a"), ("org.varlink.service.InvalidParameter", {"parameter": "units"})),
    ({"method": "io.opm.Nope.List"}, ("org.varlink.service.InterfaceNotFound", {"interface": "io.opm.Nope"})),
]:
    [reply] = raw(bad)
    assert (reply["error"], reply["parameters"]) == error, reply

# Calls that come in one piece are answered in their order; a wait holds up those behind it.
replies = raw(call("List", units=["a"]), call("Nope"), call("Show", unit="b"), call("List", units=[]))
assert [sorted(reply["parameters"]) for reply in replies] == [["instances"], ["method"], ["unit"], ["instances"]]

# A client that has said all it has to say, as `nc -N` does, is answered all the same.
assert len(raw(*[call("Info")] * 20, over=True)) == 20

# A call that wants no reply gets none, not even an error.
oneway = {"oneway": True}
[reply] = raw(call("Nope", oneway), call("Restart", oneway, units=["b"]), call("Info"), count=1)
assert "version" in reply["parameters"], reply
with client.open("io.opm.Control") as opm:
    opm.Wait(["b"], "settled")

print("all is well")
