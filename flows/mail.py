"""A notification block for e-mail by SMTP, which Prefect does not have. Its server knows it too, for automations."""

from prefect.blocks.notifications import AppriseNotificationBlock


class Email(AppriseNotificationBlock):
    """Sends e-mail by SMTP. Its `url` is Apprise's: mailtos://USER:PASSWORD@SMTP-HOST?to=ADDRESS."""

    _block_type_name = "E-mail"
    _block_type_slug = "email"
