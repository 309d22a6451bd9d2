//! Requests as the API pages print them, with ids of our own.

use super::*;

#[tokio::test]
async fn the_samples_of_the_mail_pages_are_accepted() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let headers = json!({"subject": "9/8/2018: concert", "body": {"contentType": "HTML", "content": "The group represents Washington."},
        "toRecipients": [{"emailAddress": {"address": "AlexW@contoso.OnMicrosoft.com"}}],
        "internetMessageHeaders": [{"name": "x-custom-header-group-name", "value": "Washington"}]});
    let (status, made) = ada.post("/me/messages", &headers).await;
    assert_eq!(status, 201, "{made}");
    assert!(made.get("internetMessageHeaders").is_none(), "not returned by default in a POST response");
    let (_, shown) = ada.get(&format!("/me/messages/{}/?$select=internetMessageHeaders", id(&made))).await;
    assert_eq!(shown["internetMessageHeaders"][0]["value"], "Washington");
    assert!(
        shown["@odata.context"]
            .as_str()
            .expect("a context")
            .ends_with("/messages(internetMessageHeaders)/$entity")
    );
    let text = ada
        .request(
            Method::GET,
            &format!("/me/messages/{}/?$select=subject,body,bodyPreview,uniqueBody", id(&made)),
        )
        .header("prefer", "outlook.body-content-type=\"text\"")
        .send()
        .await
        .expect("answer");
    assert_eq!(text.headers()["preference-applied"], "outlook.body-content-type=\"text\"");
    assert_eq!(
        text.json::<Value>().await.expect("json")["body"],
        json!({"contentType": "text", "content": "The group represents Washington."})
    );
    let mime = |body: &'static str| {
        ada.request(Method::POST, "/me/messages").header("content-type", "text/plain").body(body)
    };
    let (status, sample) = Client::finish(mime("RnJvbTogQWxleCBXaWxiZXIgPEFsZXhXQGNvbnRvc28uY29tPgpUbzogTWVnYW4gQm93ZW4gPE1l\nZ2FuQkBjb250b3NvLmNvbT4KU3ViamVjdDogSW50ZXJuYWwgUmVzdW1lIFN1Ym1pc3Npb246IFNh\nbGVzIEFzc29jaWF0ZQpUaHJlYWQtVG9waWM6IEludGVybmFsIFJlc3VtZSBTdWJtaXNzaW9uOiBT\nYWxlcyBBc3NvY2lhdGUKVGhyZWFkLUluZGV4OiBjb2RlY29kZWNvZGVoZXJlaGVyZWhlcmUKRGF0\nZTogU3VuLCAyOCBGZWIgMjAyMSAwNzoxNTowMCA")).await;
    assert_eq!(
        (status.as_u16(), sample["subject"].as_str()),
        (201, Some("Internal Resume Submission: Sales Associate"))
    );
    assert_eq!(
        code(&Client::finish(mime("this is not base64")).await.1),
        "ErrorMimeContentInvalidBase64String"
    );
    let send = json!({"message": {"subject": "Meet for lunch?", "body": {"contentType": "Text", "content": "The new cafeteria is open."},
        "toRecipients": [{"emailAddress": {"address": "frannis@contoso.com"}}], "ccRecipients": [{"emailAddress": {"address": "danas@contoso.com"}}]},
        "saveToSentItems": "false"});
    assert_eq!(ada.post("/me/sendMail", &send).await.0, 202);
    assert_eq!(running.sim.graph().mailbox(ADA).sent().len(), 0);
    let item = json!({"@odata.type": "#microsoft.graph.itemAttachment", "name": "Holiday event", "item": {"@odata.type": "microsoft.graph.event",
        "subject": "Discuss gifts for children", "body": {"contentType": "HTML", "content": "Let's look for funding!"},
        "start": {"dateTime": "2016-12-02T18:00:00", "timeZone": "Pacific Standard Time"}, "end": {"dateTime": "2016-12-02T19:00:00", "timeZone": "Pacific Standard Time"}}});
    assert_eq!(ada.post(&format!("/me/messages/{}/attachments", id(&made)), &item).await.0, 201);
    assert_eq!(ada.bare(Method::POST, &format!("/me/messages/{}/createForward", id(&made))).await.0, 201);
    assert_eq!(
        ada.post(&format!("/me/messages/{}/createForward", id(&made)), &json!({"comment": "x"})).await.0,
        400
    );
}

#[tokio::test]
async fn the_samples_of_the_calendar_pages_are_accepted() {
    let running = running().await;
    let ada = Client::new(&running, ADA, OWN);
    let picnic = json!({"subject": "Plan summer company picnic", "start": {"dateTime": "2017-08-30T11:00:00", "timeZone": "Pacific Standard Time"},
        "end": {"dateTime": "2017-08-30T12:00:00", "timeZone": "Pacific Standard Time"},
        "attendees": [{"emailAddress": {"address": "DanaS@contoso.onmicrosoft.com", "name": "Dana Swope"}, "type": "Required"}],
        "location": {"displayName": "Conf Room 3; Fourth Coffee; Home Office", "locationType": "Default"},
        "locations": [{"displayName": "Conf Room 3"}, {"displayName": "Fourth Coffee", "address": {"street": "4567 Main St", "city": "Redmond",
            "state": "WA", "countryOrRegion": "US", "postalCode": "32008"}, "coordinates": {"latitude": 47.672, "longitude": -102.103}}]});
    let (status, made) = ada.post("/me/events", &picnic).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["locations"][1]["address"]["city"], "Redmond");
    for name in [
        "@odata.context",
        "@odata.etag",
        "id",
        "createdDateTime",
        "lastModifiedDateTime",
        "changeKey",
        "categories",
        "originalStartTimeZone",
        "originalEndTimeZone",
        "iCalUId",
        "reminderMinutesBeforeStart",
        "isReminderOn",
        "hasAttachments",
        "subject",
        "bodyPreview",
        "importance",
        "sensitivity",
        "isAllDay",
        "isCancelled",
        "isOrganizer",
        "responseRequested",
        "seriesMasterId",
        "showAs",
        "type",
        "webLink",
        "onlineMeetingUrl",
        "responseStatus",
        "body",
        "start",
        "end",
        "location",
        "locations",
        "recurrence",
        "attendees",
        "organizer",
        "onlineMeeting",
        "hideAttendees",
    ] {
        assert!(made.get(name).is_some(), "{name} is missing: {made}");
    }
    let change = json!({"recurrence": null, "reminderMinutesBeforeStart": 99, "isOnlineMeeting": true, "onlineMeetingProvider": "teamsForBusiness",
        "isReminderOn": true, "hideAttendees": false, "categories": ["Red category"]});
    let (status, changed) = ada.patch(&format!("/me/events/{}", id(&made)), &change).await;
    assert_eq!(status, 200, "{changed}");
    assert!(changed["onlineMeeting"]["joinUrl"].is_string(), "{changed}");
    let (status, zones) = ada
        .get("/me/outlook/supportedTimeZones(TimeZoneStandard=microsoft.graph.timeZoneStandard'Iana')")
        .await;
    assert!(
        status == 200
            && zones["value"]
                .as_array()
                .is_some_and(|all| all.iter().any(|zone| zone["alias"] == "Europe/Berlin"))
    );
    let find = json!({"attendees": [{"type": "required", "emailAddress": {"name": "Alex Wilbur", "address": "alexw@contoso.onmicrosoft.com"}}],
        "locationConstraint": {"isRequired": false, "suggestLocation": false, "locations": [{"resolveAvailability": false, "displayName": "Conf room Hood"}]},
        "timeConstraint": {"activityDomain": "work", "timeSlots": [{"start": {"dateTime": "2019-04-16T09:00:00", "timeZone": "Pacific Standard Time"},
            "end": {"dateTime": "2019-04-18T17:00:00", "timeZone": "Pacific Standard Time"}}]},
        "isOrganizerOptional": "false", "meetingDuration": "PT1H", "returnSuggestionReasons": "true", "minimumAttendeePercentage": "100"});
    let (status, found) = ada.post("/me/findMeetingTimes", &find).await;
    assert_eq!(
        (status.as_u16(), found["emptySuggestionsReason"].as_str()),
        (200, Some("attendeesUnavailableOrUnknown")),
        "{found}"
    );
}
