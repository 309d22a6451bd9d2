-- Since when a folder holds less than Microsoft counts in it, and how often the backfill has read it again for that.
ALTER TABLE mailbox_folders ADD COLUMN doubted_at TIMESTAMPTZ;
ALTER TABLE mailbox_folders ADD COLUMN fill_again BIGINT NOT NULL DEFAULT 0;
