"""Prints the score for a job that cannot reach anything but itself."""
import errno
import json
import socket

NO_WAY = {errno.ENETUNREACH, errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT}
POINTS = 5


def unreachable(family, kind, address):
    """Whether the system itself refuses: a time-out or a refusing peer would be a network."""
    try:
        with socket.socket(family, kind) as sock:
            sock.settimeout(2)
            sock.connect(address)
    except OSError as error:
        print(f"{address[0]} port {address[1]}: {error.strerror or error}")
        return error.errno in NO_WAY
    print(f"{address[0]} port {address[1]}: connected")
    return False


scores = {
    # addresses set aside for documentation: nothing is there in any case
    "tcp": POINTS * unreachable(socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)),
    "udp": POINTS * unreachable(socket.AF_INET, socket.SOCK_DGRAM, ("198.51.100.1", 53)),
    "ipv6": POINTS * unreachable(socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 443)),
}
interfaces = [name for _, name in socket.if_nameindex()]
print("interfaces:", *interfaces)
scores["interfaces"] = POINTS * (interfaces in ([], ["lo"]))
print(json.dumps({"scores": scores}))
raise SystemExit(0 if all(scores.values()) else 1)
