-- The domains whose key KMS refused, which are few: they are looked for each minute.

-- +goose Up
create index domain_inaccessible on domain (domain_uid) where state = 'KEY_INACCESSIBLE';
