"""What web configuration files are made of: certificates, a hash, a section."""

import datetime
import inspect
import ipaddress
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HASH = "$2a$04$W00MjpPDRoSjOflEI/NbPu9j3i0VIoRoNeoJbK/OIIqd3g.s2aUIq"  # of: secret
TLS = "tls_server_config: {cert_file: server.crt, key_file: server.key%s}\n"


class Authority:
    """A certificate authority that writes certificates and keys to files."""

    def __init__(self, directory, name="ca"):
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = directory / f"{name}.pem"
        usage = dict.fromkeys(inspect.signature(x509.KeyUsage).parameters, False)
        usage |= {"key_cert_sign": True, "crl_sign": True}
        authority = x509.BasicConstraints(ca=True, path_length=None), x509.KeyUsage(**usage)
        certificate = self._sign(self.name, self.key, *authority)
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject, key, *extensions):
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder(self.name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        for extension in (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), issuer, *extensions):
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name, *, password=None):
        """Write `name`.crt and `name`.key; the certificate is for `name`, 127.0.0.1 and ::1."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            x509.DNSName(name),
            *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in ("127.0.0.1", "::1")),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, x509.SubjectAlternativeName(names))
        lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        pem = key.private_bytes(serialization.Encoding.PEM, form, lock)
        (self.directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.directory / f"{name}.key").write_bytes(pem)
        return certificate.serial_number

    def client(self, name=None):
        """The TLS settings of a client that trusts this authority, with a certificate if `name`."""
        context = ssl.create_default_context(cafile=str(self.file))
        if name:
            context.load_cert_chain(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        return context
