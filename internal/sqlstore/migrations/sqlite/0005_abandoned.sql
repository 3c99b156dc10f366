-- The data keys that were given up, which stay where they are for good: a report
-- counts them under keys whose other rows it need not look for any more. With the
-- epoch, or SQLite would take the primary key for it.

-- +goose Up
create index data_key_abandoned on data_key (domain_uid, key_epoch) where abandoned = true;
