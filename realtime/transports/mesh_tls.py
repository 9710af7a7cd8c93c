"""TLS between nodes: each shows a certificate, and believes those that the cluster's own authority has signed."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import gevent.socket
import gevent.ssl

from realtime.errors import ConfigurationError

__all__ = ["MeshTLS"]


@dataclass(frozen=True, kw_only=True)
class MeshTLS:
    """Mutual TLS (1.3) on the mesh's TCP links. All files are PEM.

    Names in certificates are not compared with addresses, as nodes are found by what others tell: whoever holds a
    certificate of the authority is a node, so let it sign for nothing else.

    :raises ConfigurationError: a file cannot be read, or is not what it should be.
    """

    certfile: str
    """This node's certificate, followed by any intermediate ones."""

    keyfile: str
    """Its private key, without a passphrase."""

    cafile: str
    """The certificates of the authorities whose nodes are let in."""

    def __post_init__(self) -> None:
        self.context(server_side=True)

    def context(self, *, server_side: bool) -> gevent.ssl.SSLContext:
        """Return a context for one end. Raises ConfigurationError."""
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            # an empty passphrase fails on an encrypted key; without one OpenSSL would ask on the terminal
            context.load_cert_chain(self.certfile, self.keyfile, password="")
            context.load_verify_locations(self.cafile)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"tls=MeshTLS(certfile={self.certfile!r}, keyfile={self.keyfile!r}, cafile={self.cafile!r}): "
                f"not a certificate, its unencrypted key and the authorities' certificates in PEM format: {error}"
            ) from error
        return context

    def wrap(self, sock: gevent.socket.socket, *, server_side: bool) -> gevent.ssl.SSLSocket:
        """Encrypt a connected socket, which is closed if that fails. Switches greenlets: give it a timeout.

        :raises OSError: the other side has no certificate of ours, or the connection broke.
        """
        try:
            wrapped = self.context(server_side=server_side).wrap_socket(
                sock, server_side=server_side, do_handshake_on_connect=False
            )
        except BaseException:
            sock.close()
            raise
        try:
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped
