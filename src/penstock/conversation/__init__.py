"""Conversations: a history that is always what the API takes, kept within the window and within a budget.

What lives here needs nothing but an `AsyncAnthropic`, governed or not. A history changes only when a whole answer has
come; everything that decides (what may be in it, what goes when it grows too long, whether to ask again, what a budget
pays for) is synchronous, and only `Conversation` waits.
"""

from penstock.conversation.conversation import Conversation
from penstock.conversation.reply import Reply
from penstock.conversation.session import ConversationStatistics
from penstock.conversation.system_prompt import SystemPrompt

__all__ = ["Conversation", "ConversationStatistics", "Reply", "SystemPrompt"]
