/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC includes it, and uses nothing of it. */
