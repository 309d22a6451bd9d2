"""Microsoft's own Graph SDK for Python against the simulator.

    pip install msgraph-sdk httpx
    cargo run -p m365-sim -- --listen 127.0.0.1:9365 &
    python graph_client.py http://127.0.0.1:9365

Every step that the SDK cannot do against Graph as documented is a failure of the simulator.
"""

import asyncio
import datetime
import sys
from urllib.parse import parse_qs, urlsplit

import httpx
from azure.core.credentials import AccessToken
from kiota_abstractions.base_request_configuration import RequestConfiguration
from kiota_authentication_azure.azure_identity_authentication_provider import (
    AzureIdentityAuthenticationProvider,
)
from msgraph import GraphRequestAdapter, GraphServiceClient
from msgraph.generated.models.attendee import Attendee
from msgraph.generated.models.attendee_type import AttendeeType
from msgraph.generated.models.body_type import BodyType
from msgraph.generated.models.date_time_time_zone import DateTimeTimeZone
from msgraph.generated.models.email_address import EmailAddress
from msgraph.generated.models.event import Event
from msgraph.generated.models.file_attachment import FileAttachment
from msgraph.generated.models.importance import Importance
from msgraph.generated.models.item_body import ItemBody
from msgraph.generated.models.location import Location
from msgraph.generated.models.message import Message
from msgraph.generated.models.o_data_errors.o_data_error import ODataError
from msgraph.generated.models.online_meeting_provider_type import OnlineMeetingProviderType
from msgraph.generated.models.recipient import Recipient
from msgraph.generated.models.single_value_legacy_extended_property import (
    SingleValueLegacyExtendedProperty,
)
from msgraph.generated.users.item.calendar.get_schedule.get_schedule_post_request_body import (
    GetSchedulePostRequestBody,
)
from msgraph.generated.users.item.messages.item.create_reply.create_reply_post_request_body import (
    CreateReplyPostRequestBody,
)
from msgraph.generated.users.item.messages.item.move.move_post_request_body import MovePostRequestBody
from msgraph.generated.users.item.messages.messages_request_builder import MessagesRequestBuilder
from msgraph.generated.users.item.messages.item.message_item_request_builder import (
    MessageItemRequestBuilder,
)
from msgraph.generated.users.item.calendar_view.calendar_view_request_builder import (
    CalendarViewRequestBuilder,
)
from msgraph.generated.users.item.send_mail.send_mail_post_request_body import SendMailPostRequestBody

MARKER = "String {66f5a359-4659-4830-9070-00047ec6ac6e} Name Intent"
IMMUTABLE = ("Prefer", 'IdType="ImmutableId"')
SCOPES = (
    "offline_access User.Read User.ReadBasic.All Mail.Read Mail.ReadWrite Mail.Send Calendars.ReadWrite "
    "Calendars.Read.Shared Contacts.Read People.Read Mail.Read.Shared Mail.ReadWrite.Shared Mail.Send.Shared"
)


def token(base: str, user: str) -> str:
    """Signs in as a browser would, without the page."""
    with httpx.Client() as http:
        index = http.get(f"{base}/_sim").json()
        app = index["app"]
        http.put(f"{base}/_sim/entra/policy", json={**http.get(f"{base}/_sim/entra/policy").json(), "user_consent": True})
        http.post(f"{base}/_sim/signin/auto", json={"login": user})
        tenant = next(u["tenant"] for u in index["directory"]["users"] if u["upn"] == user)
        apps = http.get(f"{base}/_sim/entra/apps").json()
        redirect = apps[0]["redirect_uris"][0]
        asked = {
            "client_id": app["client_id"], "response_type": "code", "redirect_uri": redirect, "scope": SCOPES,
            "state": "s", "login_hint": user,
        }
        answer = http.get(f"{base}/{tenant}/oauth2/v2.0/authorize", params=asked)
        code = parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
        form = {
            "client_id": app["client_id"], "client_secret": app["client_secret"], "grant_type": "authorization_code",
            "code": code, "redirect_uri": redirect, "scope": SCOPES,
        }
        return http.post(f"{base}/{tenant}/oauth2/v2.0/token", data=form).json()["access_token"]


class Static:
    """A credential that has its token already."""

    def __init__(self, text: str):
        self.text = text

    def get_token(self, *_scopes, **_options):
        return AccessToken(self.text, int(datetime.datetime.now().timestamp()) + 3000)

    async def close(self):
        pass


def graph(base: str, user: str) -> GraphServiceClient:
    # The SDK sends its token to https hosts it knows; this one is told of the simulator.
    provider = AzureIdentityAuthenticationProvider(
        Static(token(base, user)), scopes=["https://graph.microsoft.com/.default"], allowed_hosts=[urlsplit(base).hostname]
    )
    provider.access_token_provider.is_https_or_localhost = lambda *_: True
    adapter = GraphRequestAdapter(provider)
    adapter.base_url = f"{base}/v1.0"
    return GraphServiceClient(request_adapter=adapter)


def to(address: str, name: str | None = None) -> Recipient:
    return Recipient(email_address=EmailAddress(address=address, name=name))


def config(query=None, *headers) -> RequestConfiguration:
    made = RequestConfiguration(query_parameters=query)
    for name, value in headers:
        made.headers.add(name, value)
    return made


async def mail(client: GraphServiceClient, base: str) -> None:
    me = await client.me.get()
    assert me.mail == "ada@acme.example", me
    draft = await client.me.messages.post(
        Message(
            subject="Did you see last night's game?",
            importance=Importance.Low,
            body=ItemBody(content_type=BodyType.Html, content="They were <b>awesome</b>!"),
            to_recipients=[to("bob@acme.example")],
            attachments=[FileAttachment(name="a.txt", content_type="text/plain", content_bytes=b"hello")],
            single_value_extended_properties=[SingleValueLegacyExtendedProperty(id=MARKER, value="intent-1")],
        ),
        config(None, IMMUTABLE),
    )
    assert draft.is_draft and draft.internet_message_id and draft.conversation_id and draft.web_link, draft
    assert draft.body.content_type == BodyType.Html and draft.has_attachments
    expand = f"singleValueExtendedProperties($filter=id eq '{MARKER}'),attachments"
    query = MessageItemRequestBuilder.MessageItemRequestBuilderGetQueryParameters(expand=[expand])
    read = await client.me.messages.by_message_id(draft.id).get(config(query, IMMUTABLE))
    assert read.single_value_extended_properties[0].value == "intent-1"
    assert read.attachments[0].name == "a.txt" and isinstance(read.attachments[0], FileAttachment)
    found = await client.me.messages.get(
        config(
            MessagesRequestBuilder.MessagesRequestBuilderGetQueryParameters(
                filter=f"singleValueExtendedProperties/Any(ep: ep/id eq '{MARKER}' and ep/value eq 'intent-1')",
                select=["id", "subject", "isDraft"],
                top=5,
                count=True,
            ),
            IMMUTABLE,
        )
    )
    assert [one.id for one in found.value] == [draft.id], found
    assert found.odata_count == 1
    changed = await client.me.messages.by_message_id(draft.id).patch(Message(subject="Changed"))
    assert changed.subject == "Changed"
    await client.me.messages.by_message_id(draft.id).send.post()
    sent = await client.me.mail_folders.by_mail_folder_id("sentitems").messages.get(config(None, IMMUTABLE))
    assert sent.value[0].id == draft.id and not sent.value[0].is_draft
    await client.me.send_mail.post(
        SendMailPostRequestBody(
            message=Message(
                subject="Meet for lunch?",
                body=ItemBody(content_type=BodyType.Text, content="The new cafeteria is open."),
                to_recipients=[to("bob@acme.example")],
            ),
            save_to_sent_items=False,
        )
    )
    folders = await client.me.mail_folders.get()
    assert "Inbox" in [one.display_name for one in folders.value]
    # Bob sees it, answers it, files it.
    bob = graph(base, "bob@acme.example")
    inbox = await bob.me.mail_folders.by_mail_folder_id("inbox").messages.get()
    original = next(one for one in inbox.value if one.subject == "Changed")
    reply = await bob.me.messages.by_message_id(original.id).create_reply.post(CreateReplyPostRequestBody())
    assert reply.subject == "RE: Changed" and "awesome" in reply.body.content
    assert reply.to_recipients[0].email_address.address == "ada@acme.example"
    assert reply.conversation_id == original.conversation_id
    moved = await bob.me.messages.by_message_id(original.id).move.post(MovePostRequestBody(destination_id="archive"))
    assert moved.id != original.id
    try:
        await bob.me.messages.by_message_id(original.id).get()
        raise AssertionError("the old id must be gone")
    except ODataError as error:
        assert error.response_status_code == 404 and error.error.code == "ErrorItemNotFound", error
    await bob.me.messages.by_message_id(reply.id).delete()


async def calendar(client: GraphServiceClient) -> None:
    event = Event(
        subject="Follow-up",
        body=ItemBody(content_type=BodyType.Html, content="Does late morning work for you?"),
        start=DateTimeTimeZone(date_time="2026-07-15T12:00:00", time_zone="Pacific Standard Time"),
        end=DateTimeTimeZone(date_time="2026-07-15T14:00:00", time_zone="Pacific Standard Time"),
        location=Location(display_name="Harry's Bar"),
        attendees=[
            Attendee(email_address=EmailAddress(address="bob@acme.example", name="Bob"), type=AttendeeType.Required)
        ],
        is_online_meeting=True,
        online_meeting_provider=OnlineMeetingProviderType.TeamsForBusiness,
        transaction_id="7E163156-7762-4BEB-A1C6-729EA81755A7",
    )
    pacific = ("Prefer", 'outlook.timezone="Pacific Standard Time"')
    made = await client.me.events.post(event, config(None, pacific))
    assert made.start.date_time == "2026-07-15T12:00:00.0000000", made.start
    assert made.online_meeting.join_url and made.i_cal_u_id and made.web_link
    again = await client.me.events.post(event, config(None, pacific))
    assert again.id == made.id, "the same transaction is one event"
    utc = await client.me.events.by_event_id(made.id).get()
    assert utc.start.date_time == "2026-07-15T19:00:00.0000000" and utc.start.time_zone == "UTC"
    assert utc.original_start_time_zone == "Pacific Standard Time"
    changed = await client.me.events.by_event_id(made.id).patch(Event(subject="Moved"))
    assert changed.subject == "Moved"
    query = CalendarViewRequestBuilder.CalendarViewRequestBuilderGetQueryParameters(
        start_date_time="2026-07-15T00:00:00Z", end_date_time="2026-07-16T00:00:00Z"
    )
    view = await client.me.calendar_view.get(config(query))
    assert [one.id for one in view.value] == [made.id]
    schedule = await client.me.calendar.get_schedule.post(
        GetSchedulePostRequestBody(
            schedules=["ada@acme.example", "nobody@acme.example"],
            start_time=DateTimeTimeZone(date_time="2026-07-15T18:00:00", time_zone="UTC"),
            end_time=DateTimeTimeZone(date_time="2026-07-15T22:00:00", time_zone="UTC"),
            availability_view_interval=60,
        )
    )
    assert schedule.value[0].availability_view == "0220", schedule.value[0]
    assert schedule.value[1].error.response_code == "ErrorMailRecipientNotFound"
    await client.me.events.by_event_id(made.id).delete()


async def people(client: GraphServiceClient) -> None:
    found = await client.me.people.get()
    assert any(one.display_name == "Bob Keller" for one in found.value)
    contacts = await client.me.contacts.get()
    assert contacts.value is not None
    delta = await client.me.mail_folders.by_mail_folder_id("inbox").messages.delta.get()
    assert delta.odata_delta_link or delta.odata_next_link


async def main(base: str) -> None:
    client = graph(base, "ada@acme.example")
    await mail(client, base)
    await calendar(client)
    await people(client)
    print("the Graph SDK is content")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:9365"))
