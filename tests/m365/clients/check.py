"""Microsoft's own clients against the simulator: sign in, refresh, prove who the app is, read and write rows."""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from urllib.parse import parse_qsl, urlsplit

parser = argparse.ArgumentParser()
parser.add_argument("--sim", required=True, help="the m365-sim program")
arguments = parser.parse_args()

folder = tempfile.mkdtemp()
ca = os.path.join(folder, "ca.pem")
sim = subprocess.Popen(
    [arguments.sim, "--listen", "127.0.0.1:0", "--tls", "--ca-out", ca], stdout=subprocess.PIPE, text=True
)
BASE = sim.stdout.readline().split(" ")[2]
# Read by requests, which the Dataverse client uses without a setting of its own.
os.environ["REQUESTS_CA_BUNDLE"] = ca

import msal  # noqa: E402
import requests  # noqa: E402
from azure.core.credentials import AccessToken  # noqa: E402
from azure.identity import AuthorizationCodeCredential  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: E402
from PowerPlatform.Dataverse.client import DataverseClient  # noqa: E402

REDIRECT = "http://localhost:8400/callback"
world = requests.get(f"{BASE}/_sim").json()
APP = world["app"]
ACME = world["directory"]["tenants"][0]["id"]


def step(text):
    print(f"ok  {text}")


def control(method, path, body):
    requests.request(method, f"{BASE}/_sim/{path}", json=body).raise_for_status()


def browser(url):
    """What the browser does: follows the sign-in to the app's own address and hands back its parameters."""
    answer = requests.get(url, allow_redirects=False)
    assert answer.status_code == 302, (answer.status_code, answer.text)
    return dict(parse_qsl(urlsplit(answer.headers["location"]).query))


def application(credential, tenant="organizations"):
    return msal.ConfidentialClientApplication(
        APP["client_id"],
        client_credential=credential,
        authority=f"{BASE}/{tenant}",
        instance_discovery=False,
        verify=ca,
    )


def certificate():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "followthrough")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private.decode(), made.public_bytes(pem).decode(), made.fingerprint(hashes.SHA1()).hex()


class ByRefresh:
    """A credential that refreshes for whatever scope the client asks for."""

    def __init__(self, app, refresh_token):
        self.app, self.refresh_token = app, refresh_token

    def get_token(self, *scopes, **_):
        tokens = self.app.acquire_token_by_refresh_token(self.refresh_token, scopes=list(scopes))
        assert "access_token" in tokens, tokens
        self.refresh_token = tokens.get("refresh_token", self.refresh_token)
        return AccessToken(tokens["access_token"], int(time.time()) + tokens["expires_in"])


def main():
    control("POST", "signin/auto", {"login": "ada@acme.example"})

    app = application(APP["client_secret"])
    flow = app.initiate_auth_code_flow(
        ["Mail.ReadWrite", f"{BASE}/user_impersonation"], redirect_uri=REDIRECT, response_mode="query", login_hint="ada@acme.example"
    )
    # The first leg may span resources; the redemption may not.
    flow["scope"] = [scope for scope in flow["scope"] if not scope.startswith(BASE)]
    tokens = app.acquire_token_by_auth_code_flow(flow, browser(flow["auth_uri"]), scopes=["Mail.ReadWrite"])
    assert "access_token" in tokens, tokens
    assert tokens["id_token_claims"]["tid"] == ACME
    assert tokens["id_token_claims"]["preferred_username"] == "ada@acme.example"
    assert app.get_accounts()[0]["username"] == "ada@acme.example"
    step("MSAL: authorization code with PKCE, id token, account")

    again = app.acquire_token_silent(["Mail.ReadWrite"], account=app.get_accounts()[0], force_refresh=True)
    assert again and again["token_source"] == "identity_provider", again
    step("MSAL: silent refresh")

    refused = app.acquire_token_by_refresh_token(tokens["refresh_token"], scopes=["Calendars.ReadWrite"])
    assert (refused["error"], refused["suberror"]) == ("invalid_grant", "consent_required"), refused
    step("MSAL: no consent is invalid_grant with consent_required")

    wrong = application("wrong").acquire_token_by_refresh_token(tokens["refresh_token"], scopes=["Mail.ReadWrite"])
    assert wrong["error_codes"] == [7000215], wrong
    step("MSAL: a wrong secret is invalid_client")

    private, public, thumbprint = certificate()
    registration = requests.get(f"{BASE}/_sim/entra/apps").json()[0]
    registration["certificates"] = [{"pem": public}]
    control("PUT", "entra/apps", registration)
    for name, credential in (
        ("PS256, x5t#S256", {"private_key": private, "public_certificate": public}),
        ("RS256, x5t", {"private_key": private, "thumbprint": thumbprint}),
    ):
        proven = application(credential, ACME).acquire_token_by_refresh_token(
            tokens["refresh_token"], scopes=["Mail.ReadWrite"]
        )
        assert "access_token" in proven, proven
        step(f"MSAL: client certificate ({name})")

    flow = app.initiate_auth_code_flow(["User.Read"], redirect_uri=REDIRECT, response_mode="query")
    url = flow["auth_uri"].split("&code_challenge=")[0]
    credential = AuthorizationCodeCredential(
        "organizations",
        APP["client_id"],
        browser(url)["code"],
        REDIRECT,
        client_secret=APP["client_secret"],
        authority=BASE,
        disable_instance_discovery=True,
        connection_verify=ca,
    )
    assert credential.get_token("https://graph.microsoft.com/User.Read").token
    step("azure-identity: authorization code")

    dataverse = DataverseClient(BASE, ByRefresh(application(APP["client_secret"], ACME), tokens["refresh_token"]))
    first = "00000001-0000-4000-8000-000000000001"
    row = dataverse.records.retrieve("account", first, select=["name", "telephone1"])
    assert row["name"] == "Contoso Ltd.", row
    step("Dataverse client: retrieve")
    made = dataverse.records.create("new_Promise", {"new_name": "Call back", "new_outcome": "Kept", "new_weight": 2})
    row = dataverse.records.retrieve("new_Promise", made)
    assert row["new_outcome"] == 100000001, row
    step("Dataverse client: create, a label becomes its value through metadata")
    dataverse.records.update("account", first, {"telephone1": "+41 44 111 22 33"})
    row = dataverse.records.retrieve("account", first, select=["telephone1"])
    assert row["telephone1"] == "+41 44 111 22 33", row
    step("Dataverse client: update")
    dataverse.records.delete("new_Promise", made)
    step("Dataverse client: delete")

    changed = [write["changed"] for write in requests.get(f"{BASE}/_sim/dataverse/writes").json()]
    assert list(changed[1]) == ["telephone1"], changed
    violations = requests.get(f"{BASE}/_sim/referee").json()["violations"]
    assert {violation["rule"] for violation in violations} == {"refresh_on_common"}, violations
    step("the referee saw nothing but refreshes on /organizations")


try:
    main()
finally:
    sim.terminate()
    sim.wait()
sys.exit(0)
