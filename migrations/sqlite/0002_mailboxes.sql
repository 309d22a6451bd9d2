-- Shared mailboxes that are exposed to a workspace through one service account's connection.
CREATE TABLE mailboxes (
    id              BLOB        PRIMARY KEY,
    workspace       TEXT        NOT NULL,
    user_name       TEXT        NOT NULL,
    -- Lower case.
    address         TEXT        NOT NULL,
    state           TEXT        NOT NULL,
    -- Why it is not reached; empty while it is.
    code            TEXT,
    message         TEXT,
    -- Mail received before this moment is not filled in. Fixed when the mailbox is connected.
    floor           DATETIME    NOT NULL,
    capabilities    TEXT        NOT NULL,
    rung            TEXT        NOT NULL,
    rung_reason     TEXT        NOT NULL,
    rung_since      DATETIME    NOT NULL,
    -- The last notification whose message a poll saw as well.
    proven_at       DATETIME,
    checked_at      DATETIME,
    -- Counts the syncs handed out; the id of the last one is made of it.
    round           INTEGER     NOT NULL DEFAULT 0,
    -- When the next sync is due; empty while one is out.
    due_at          DATETIME,
    out_since       DATETIME,
    tree_at         DATETIME,
    -- When subscriptions are to be looked after, and when push is tried again.
    tend_at         DATETIME,
    -- The steps of the disconnect that are done.
    receipt         TEXT,
    created_at      DATETIME    NOT NULL,
    updated_at      DATETIME    NOT NULL,
    UNIQUE (workspace, address)
);
CREATE INDEX mailboxes_due ON mailboxes (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX mailboxes_out ON mailboxes (out_since) WHERE due_at IS NULL;

CREATE TABLE mailbox_folders (
    mailbox_id      BLOB        NOT NULL,
    id              TEXT        NOT NULL,
    parent_id       TEXT,
    name            TEXT        NOT NULL,
    -- `inbox`, `sentitems`, …, as far as known.
    well_known      TEXT,
    hidden          BOOLEAN     NOT NULL,
    state           TEXT        NOT NULL,
    -- How it is followed: `delta`, or `list` where delta is refused.
    rung            TEXT        NOT NULL,
    -- A next link while a round is under way, a delta link between rounds.
    link            TEXT,
    link_kind       TEXT,
    -- Whoever writes the link read this number.
    link_version    INTEGER     NOT NULL DEFAULT 0,
    -- A descending list over what is there: at night, and after a link was lost. Messages seen by it carry its
    -- number; what stays unseen is looked for by id. It goes on before `sweep_before` and ends at `sweep_floor`.
    sweep           INTEGER     NOT NULL DEFAULT 0,
    sweep_before    DATETIME,
    sweep_from      DATETIME,
    sweep_floor     DATETIME,
    -- A link was lost while the folder was being filled: the next daily sweep goes down to the mailbox's floor.
    lost_at         DATETIME,
    -- The same for the backfill, which looks for nothing by id.
    fill_before     DATETIME,
    fill_floor      DATETIME,
    -- The newest arrival seen: where an ascending list begins.
    newest          DATETIME,
    due_at          DATETIME,
    noticed_at      DATETIME,
    polled_at       DATETIME,
    changed_at      DATETIME,
    created_at      DATETIME    NOT NULL,
    updated_at      DATETIME    NOT NULL,
    PRIMARY KEY (mailbox_id, id)
);

-- The shared inbox. Ids are compared byte by byte: those of Exchange differ by case alone.
CREATE TABLE messages (
    mailbox_id          BLOB        NOT NULL,
    id                  TEXT        NOT NULL,
    folder_id           TEXT        NOT NULL,
    internet_message_id TEXT,
    conversation_id     TEXT,
    received_at         DATETIME    NOT NULL,
    subject             TEXT,
    is_read             BOOLEAN     NOT NULL,
    is_draft            BOOLEAN     NOT NULL,
    -- Everything else that Graph tells of it, as JSON.
    detail              TEXT        NOT NULL,
    -- `present`, `doubtful` (gone from its folder, to be looked for by id), `removed`.
    state               TEXT        NOT NULL,
    sweep               INTEGER     NOT NULL DEFAULT 0,
    -- The backfill that found it.
    backfill            INTEGER     NOT NULL DEFAULT 0,
    created_at          DATETIME    NOT NULL,
    updated_at          DATETIME    NOT NULL,
    PRIMARY KEY (mailbox_id, id)
);
CREATE INDEX messages_listed ON messages (mailbox_id, received_at, id);
CREATE INDEX messages_by_folder ON messages (mailbox_id, folder_id, received_at);
CREATE INDEX messages_by_conversation ON messages (mailbox_id, conversation_id, received_at);
CREATE INDEX messages_by_internet_id ON messages (mailbox_id, internet_message_id);
CREATE INDEX messages_doubtful ON messages (mailbox_id) WHERE state = 'doubtful';

-- The content of attachments, kept or still to be fetched. Which attachments a message has is in its row.
CREATE TABLE attachments (
    mailbox_id      BLOB        NOT NULL,
    message_id      TEXT        NOT NULL,
    id              TEXT        NOT NULL,
    -- `wanted`, `kept`, `refused`.
    state           TEXT        NOT NULL,
    -- As Exchange counts, which is not quite what its content has.
    size            INTEGER     NOT NULL,
    -- Of its message: the newest is fetched first.
    received_at     DATETIME    NOT NULL,
    -- Why it was not had.
    code            TEXT,
    tries           INTEGER     NOT NULL DEFAULT 0,
    -- It is not asked for earlier.
    due_at          DATETIME    NOT NULL,
    content         BLOB,
    created_at      DATETIME    NOT NULL,
    updated_at      DATETIME    NOT NULL,
    PRIMARY KEY (mailbox_id, message_id, id)
);
CREATE INDEX attachments_wanted ON attachments (mailbox_id, received_at) WHERE state = 'wanted';

-- One at a time per mailbox; the last one stays to be looked at.
CREATE TABLE backfills (
    mailbox_id      BLOB        PRIMARY KEY,
    -- The job that does it.
    id              BLOB        NOT NULL,
    number          INTEGER     NOT NULL,
    floor           DATETIME    NOT NULL,
    state           TEXT        NOT NULL,
    found           INTEGER     NOT NULL DEFAULT 0,
    stored          INTEGER     NOT NULL DEFAULT 0,
    -- As many as the folders say they hold in its time; a guess until they were asked.
    expected        INTEGER,
    requests        INTEGER     NOT NULL DEFAULT 0,
    told_at         DATETIME,
    started_at      DATETIME    NOT NULL,
    updated_at      DATETIME    NOT NULL,
    finished_at     DATETIME
);

-- Subscriptions to Microsoft's change notifications, one to a folder. The client state is kept as a hash.
CREATE TABLE subscriptions (
    id              BLOB        PRIMARY KEY,
    mailbox_id      BLOB        NOT NULL,
    folder_id       TEXT        NOT NULL,
    -- Microsoft's id; empty until it answered.
    graph_id        TEXT        UNIQUE,
    client_state    BLOB        NOT NULL,
    -- `creating` (from before the call until its answer is stored), `live`, `refused`.
    state           TEXT        NOT NULL,
    -- Why it is refused.
    code            TEXT,
    message         TEXT,
    expires_at      DATETIME,
    -- When it is renewed, or tried again after a refusal.
    renew_at        DATETIME,
    -- A lifecycle event asks for a fresh token, or for the subscription to be made again.
    asked           TEXT,
    live_at         DATETIME,
    -- When Microsoft was last shown a token for it.
    presented_at    DATETIME,
    checked_at      DATETIME,
    notices         INTEGER     NOT NULL DEFAULT 0,
    noticed_at      DATETIME,
    -- The last notification whose message a poll saw as well.
    proven_at       DATETIME,
    -- Created messages in a row that no notification told of.
    unannounced     INTEGER     NOT NULL DEFAULT 0,
    created_at      DATETIME    NOT NULL,
    updated_at      DATETIME    NOT NULL,
    UNIQUE (mailbox_id, folder_id)
);
CREATE INDEX subscriptions_creating ON subscriptions (client_state) WHERE state = 'creating';

-- Notifications that no poll has matched yet: each once, however often it comes. And the other way round: `awaited`
-- messages, which a poll saw and no notification has told of yet.
CREATE TABLE notices (
    mailbox_id      BLOB        NOT NULL,
    folder_id       TEXT        NOT NULL,
    message_id      TEXT        NOT NULL,
    change          TEXT        NOT NULL,
    received_at     DATETIME    NOT NULL,
    PRIMARY KEY (mailbox_id, folder_id, message_id, change)
);
CREATE INDEX notices_awaited ON notices (mailbox_id, folder_id) WHERE change = 'awaited';

-- How many of its gate's permits a running job holds.
ALTER TABLE jobs ADD COLUMN permits INTEGER NOT NULL DEFAULT 1;

-- What was ended with the connection last, and what could not be.
ALTER TABLE connections ADD COLUMN receipt TEXT;
