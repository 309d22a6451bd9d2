-- The ledger: one row per job. A running row with a live lease is also the job's permit at its gate.
CREATE TABLE jobs (
    workspace    TEXT        NOT NULL,
    id           TEXT        NOT NULL,
    kind         TEXT        NOT NULL,
    user_name    TEXT        NOT NULL,
    meeting      TEXT,
    tool         TEXT,
    payload      TEXT        NOT NULL,
    digest       BYTEA       NOT NULL,
    traceparent  TEXT,
    state        TEXT        NOT NULL,
    cause        TEXT,
    code         TEXT,
    message      TEXT,
    result       TEXT,
    attempt      INTEGER     NOT NULL DEFAULT 0,
    crashes      INTEGER     NOT NULL DEFAULT 0,
    fence        BIGINT      NOT NULL DEFAULT 0,
    holder       TEXT,
    lease_until  TIMESTAMPTZ,
    gate         TEXT,
    parked_grant BIGINT,
    due_at       TIMESTAMPTZ,
    not_before   TIMESTAMPTZ,
    expires_at   TIMESTAMPTZ,
    approved_by  TEXT,
    approved_at  TIMESTAMPTZ,
    note         TEXT,
    created_at   TIMESTAMPTZ NOT NULL,
    updated_at   TIMESTAMPTZ NOT NULL,
    finished_at  TIMESTAMPTZ,
    PRIMARY KEY (workspace, id)
);
CREATE INDEX jobs_running ON jobs (gate, lease_until) WHERE state = 'running';
CREATE INDEX jobs_holder ON jobs (holder) WHERE state = 'running';
CREATE INDEX jobs_parked ON jobs (workspace, user_name, cause, created_at) WHERE state = 'parked';
CREATE INDEX jobs_due ON jobs (due_at) WHERE state IN ('queued', 'waiting');
CREATE INDEX jobs_listed ON jobs (workspace, created_at, id);

-- The effect ledger: one row per outward write, from intent to confirmation.
CREATE TABLE effects (
    workspace   TEXT        NOT NULL,
    job_id      TEXT        NOT NULL,
    step        TEXT        NOT NULL,
    effect_id   UUID        NOT NULL,
    state       TEXT        NOT NULL,
    request     TEXT,
    result      TEXT,
    request_id  TEXT,
    fence       BIGINT      NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL,
    updated_at  TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (workspace, job_id, step)
);

-- What a committed state still owes to the broker.
CREATE TABLE outbox (
    seq            BIGSERIAL   PRIMARY KEY,
    message_id     UUID        NOT NULL,
    subject        TEXT        NOT NULL,
    target         TEXT        NOT NULL,
    body           TEXT        NOT NULL,
    headers        TEXT        NOT NULL,
    created_at     TIMESTAMPTZ NOT NULL,
    claimed_by     TEXT,
    claimed_until  TIMESTAMPTZ,
    attempts       INTEGER     NOT NULL DEFAULT 0,
    last_error     TEXT
);
CREATE INDEX outbox_subject ON outbox (subject, seq);

-- The cool-down of a mailbox or CRM user after a throttle.
CREATE TABLE gates (
    key         TEXT        PRIMARY KEY,
    not_before  TIMESTAMPTZ,
    strikes     INTEGER     NOT NULL DEFAULT 0,
    touched     BIGINT      NOT NULL DEFAULT 0
);

CREATE TABLE tools (
    workspace   TEXT        NOT NULL,
    tool        TEXT        NOT NULL,
    level       TEXT        NOT NULL,
    updated_at  TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (workspace, tool)
);

CREATE TABLE dead_letters (
    id            UUID        PRIMARY KEY,
    workspace     TEXT,
    kind          TEXT,
    job_id        TEXT,
    user_name     TEXT,
    source        TEXT        NOT NULL,
    code          TEXT        NOT NULL,
    message       TEXT        NOT NULL,
    path          TEXT,
    attempts      INTEGER     NOT NULL,
    body          BYTEA       NOT NULL,
    headers       TEXT        NOT NULL,
    history       TEXT        NOT NULL,
    state         TEXT        NOT NULL,
    settled_by    TEXT,
    settled_at    TIMESTAMPTZ,
    created_at    TIMESTAMPTZ NOT NULL
);
CREATE INDEX dead_letters_listed ON dead_letters (created_at, id);
CREATE INDEX dead_letters_open ON dead_letters (code, kind) WHERE state = 'open';
CREATE INDEX dead_letters_by_job ON dead_letters (workspace, job_id);

CREATE TABLE connections (
    id               UUID        PRIMARY KEY,
    workspace        TEXT        NOT NULL,
    user_name        TEXT        NOT NULL,
    integration      TEXT        NOT NULL,
    status           TEXT        NOT NULL,
    cause            TEXT,
    message          TEXT,
    tenant_id        TEXT,
    object_id        TEXT,
    account          TEXT,
    scopes           TEXT        NOT NULL DEFAULT '',
    environment      TEXT,
    claims           TEXT,
    refresh_token    BYTEA,
    grant_number     BIGINT      NOT NULL DEFAULT 0,
    token_version    BIGINT      NOT NULL DEFAULT 0,
    refresh_holder   TEXT,
    refresh_until    TIMESTAMPTZ,
    refreshed_at     TIMESTAMPTZ,
    created_at       TIMESTAMPTZ NOT NULL,
    updated_at       TIMESTAMPTZ NOT NULL,
    UNIQUE (workspace, user_name, integration)
);
CREATE INDEX connections_idle ON connections (refreshed_at) WHERE refresh_token IS NOT NULL;

-- One-time sign-in links. Nonce and verifier are made with the link, so that a preview that opens it spoils nothing.
CREATE TABLE sign_in_links (
    id             UUID        PRIMARY KEY,
    connection_id  UUID        NOT NULL,
    secret_hash    BYTEA       NOT NULL UNIQUE,
    account        TEXT,
    replaces       BOOLEAN     NOT NULL DEFAULT FALSE,
    return_to      TEXT,
    environment    TEXT,
    nonce          TEXT        NOT NULL,
    verifier       BYTEA       NOT NULL,
    used_at        TIMESTAMPTZ,
    expires_at     TIMESTAMPTZ NOT NULL,
    created_at     TIMESTAMPTZ NOT NULL
);
CREATE INDEX sign_in_links_by_connection ON sign_in_links (connection_id);

CREATE TABLE crm_environments (
    workspace   TEXT        PRIMARY KEY,
    url         TEXT        NOT NULL,
    updated_at  TIMESTAMPTZ NOT NULL
);

CREATE TABLE api_keys (
    id          UUID        PRIMARY KEY,
    name        TEXT        NOT NULL,
    role        TEXT        NOT NULL,
    workspace   TEXT,
    hash        BYTEA       NOT NULL UNIQUE,
    created_at  TIMESTAMPTZ NOT NULL,
    revoked_at  TIMESTAMPTZ
);

CREATE TABLE paused_queues (
    kind        TEXT        PRIMARY KEY,
    paused_by   TEXT        NOT NULL,
    paused_at   TIMESTAMPTZ NOT NULL
);

-- One leader at a time for what must be done once in the fleet.
CREATE TABLE leases (
    name    TEXT        PRIMARY KEY,
    holder  TEXT        NOT NULL,
    until   TIMESTAMPTZ NOT NULL
);

-- The embedded broker: queues as rows with visibility times. A claim lives as long as its instance's lease.
CREATE TABLE queue_messages (
    seq           BIGSERIAL   PRIMARY KEY,
    queue         TEXT        NOT NULL,
    routing_key   TEXT        NOT NULL,
    message_id    TEXT        NOT NULL,
    content_type  TEXT        NOT NULL,
    body          BYTEA       NOT NULL,
    headers       TEXT        NOT NULL,
    death         TEXT,
    visible_at    TIMESTAMPTZ NOT NULL,
    claimed_by    TEXT,
    deliveries    INTEGER     NOT NULL DEFAULT 0,
    created_at    TIMESTAMPTZ NOT NULL
);
CREATE INDEX queue_messages_ready ON queue_messages (queue, visible_at, seq) WHERE claimed_by IS NULL;
CREATE INDEX queue_messages_claimed ON queue_messages (claimed_by) WHERE claimed_by IS NOT NULL;
