"""Sites on one machine: nodes, clients, a controller and an outside host, joined like the real thing.

Every node has `enclave0` (the site's own switch, shared with the site's client) and `uplink0` (the site's
uplink network; a router leads to the controller and to the outside host). IPv4 and IPv6 everywhere. The
switches and the router are one namespace of their own, without any filter: whatever stops a packet is a
node's doing. Nothing touches the machine's own network.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.parts.namespace import Namespace, remove_leftovers

_CLIENT_HOST = 100
_FIRST_NODE_HOST = 10
_CONTROLLER_NET = 0
_OUTSIDE_NET = 99


def enclave4(site: int, host: int) -> str:
    """Return an IPv4 address on the enclave of a site."""
    return f"10.10.{site}.{host}"


def enclave6(site: int, host: int) -> str:
    """Return an IPv6 address on the enclave of a site."""
    return f"fd10:{site}::{host}"


def uplink4(net: int, host: int) -> str:
    """Return an IPv4 address on an uplink network."""
    return f"10.20.{net}.{host}"


def uplink6(net: int, host: int) -> str:
    """Return an IPv6 address on an uplink network."""
    return f"fd20:{net}::{host}"


@dataclass
class Host:
    """One machine of the lab."""

    name: str
    namespace: Namespace
    enclave: tuple[str, str] = ("", "")
    uplink: tuple[str, str] = ("", "")
    """IPv4 and IPv6."""


@dataclass
class Site:
    """A site: nodes that share an enclave with one client."""

    name: str
    number: int
    nodes: list[Host] = field(default_factory=list)
    client: Host | None = None

    @property
    def the_client(self) -> Host:
        """Return the client; a site of a built topology always has one."""
        assert self.client is not None
        return self.client


class Topology:
    """All of it. `sites` maps a site's name to its number of nodes. Use as a context manager."""

    def __init__(self, sites: dict[str, int]) -> None:
        """Remove what killed runs left, then build; a failure half way removes what was built."""
        remove_leftovers()
        self._namespaces: list[Namespace] = []
        self.sites: dict[str, Site] = {}
        try:
            self._build(sites)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Topology:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nodes(self) -> list[Host]:
        """Return every node of every site."""
        return [node for site in self.sites.values() for node in site.nodes]

    def node(self, name: str) -> Host:
        """Return a node by its name."""
        return next(node for node in self.nodes if node.name == name)

    def close(self) -> None:
        """Remove every namespace of this topology and the processes in them."""
        for namespace in reversed(self._namespaces):
            namespace.remove()
        self._namespaces.clear()

    def _namespace(self, label: str) -> Namespace:
        namespace = Namespace(label)
        self._namespaces.append(namespace)
        # No second of waiting for duplicate addresses that cannot exist.
        namespace.sysctl(net__ipv6__conf__default__accept_dad="0", net__ipv6__conf__all__accept_dad="0")
        return namespace

    def _build(self, sites: dict[str, int]) -> None:
        self._fabric = self._namespace("fabric")
        self._fabric.sysctl(net__ipv4__ip_forward="1", net__ipv6__conf__all__forwarding="1")
        self.controller = self._routed("controller", _CONTROLLER_NET)
        self.outside = self._routed("outside", _OUTSIDE_NET)
        for number, (name, count) in enumerate(sites.items(), start=1):
            self._switch(f"enc{number}")
            self._switch(f"up{number}", (uplink4(number, 1), uplink6(number, 1)))
            site = Site(name, number)
            for index in range(1, count + 1):
                site.nodes.append(self._node(f"{name}-{index}", number, _FIRST_NODE_HOST + index))
            site.client = self._client(f"{name}-client", number)
            self.sites[name] = site

    def _switch(self, name: str, addresses: tuple[str, str] | None = None) -> None:
        lines = [f"link add {name} type bridge forward_delay 0 mcast_snooping 0", f"link set {name} up"]
        if addresses:
            lines.append(f"addr add {addresses[0]}/24 dev {name}")
            lines.append(f"addr add {addresses[1]}/64 dev {name} nodad")
        self._fabric.batch(lines)

    def _plug(
        self, switch: str, port: str, namespace: Namespace, interface: str, own: tuple[str, str]
    ) -> None:
        self._fabric.batch(
            [
                f"link add {port} type veth peer name {interface} netns {namespace.name}",
                f"link set {port} master {switch} up",
            ]
        )
        namespace.batch(
            [
                f"link set {interface} up",
                f"addr add {own[0]}/24 dev {interface}",
                f"addr add {own[1]}/64 dev {interface} nodad",
            ]
        )

    def _routed(self, label: str, net: int) -> Host:
        namespace = self._namespace(label)
        self._switch(f"up{net}", (uplink4(net, 1), uplink6(net, 1)))
        own = (uplink4(net, 2), uplink6(net, 2))
        self._plug(f"up{net}", f"p{net}", namespace, "uplink0", own)
        namespace.batch(
            [f"route add default via {uplink4(net, 1)}", f"route add default via {uplink6(net, 1)}"]
        )
        return Host(label, namespace, uplink=own)

    def _node(self, name: str, site: int, host: int) -> Host:
        namespace = self._namespace(name)
        # A forwarding node is the point: the fence must stop what the kernel would pass on.
        namespace.sysctl(net__ipv4__ip_forward="1", net__ipv6__conf__all__forwarding="1")
        enclave = (enclave4(site, host), enclave6(site, host))
        uplink = (uplink4(site, host), uplink6(site, host))
        self._plug(f"enc{site}", f"e{site}x{host}", namespace, "enclave0", enclave)
        self._plug(f"up{site}", f"u{site}x{host}", namespace, "uplink0", uplink)
        namespace.batch(
            [f"route add default via {uplink4(site, 1)}", f"route add default via {uplink6(site, 1)}"]
        )
        if host == _FIRST_NODE_HOST + 1:
            # The way back for what a client sends through the first node, so that only a fence stops it.
            self._fabric.batch(
                [
                    f"route add 10.10.{site}.0/24 via {uplink[0]}",
                    f"route add fd10:{site}::/64 via {uplink[1]}",
                ]
            )
        return Host(name, namespace, enclave, uplink)

    def _client(self, name: str, site: int) -> Host:
        namespace = self._namespace(name)
        own = (enclave4(site, _CLIENT_HOST), enclave6(site, _CLIENT_HOST))
        self._plug(f"enc{site}", f"e{site}c", namespace, "enclave0", own)
        # A curious client: it sends everything else through the first node.
        first = (enclave4(site, _FIRST_NODE_HOST + 1), enclave6(site, _FIRST_NODE_HOST + 1))
        namespace.batch([f"route add default via {first[0]}", f"route add default via {first[1]}"])
        return Host(name, namespace, enclave=own)
